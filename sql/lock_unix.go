//go:build unix

package sql

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// fileLock is a lock on PATH.lock. The kernel drops it with the process, however that ends.
type fileLock struct {
	path string
	db   os.FileInfo
	f    *os.File
}

func lockFile(path string) (locker, error) {
	db, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		b := make([]byte, 32)
		n, _ := f.ReadAt(b, 0)
		f.Close()
		if pid := strings.TrimSpace(string(b[:n])); pid != "" {
			return nil, fmt.Errorf("%w (process %s)", ErrInUse, pid)
		}
		return nil, ErrInUse
	}
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s.lock: %w", path, err)
	}
	return &fileLock{path: path, db: db, f: f}, nil
}

func (l *fileLock) check(context.Context) error { return checkSame(l.path, l.db) }

// close leaves the file: removing it would let two processes lock two files of one name.
func (l *fileLock) close() error { return l.f.Close() }
