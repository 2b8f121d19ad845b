//go:build !unix

package sql

import (
	"context"
	"os"
)

// fileLock locks nothing: there is no flock here, and a lock that outlives its process would be worse than none.
type fileLock struct {
	path string
	db   os.FileInfo
}

func lockFile(path string) (locker, error) {
	db, err := os.Stat(path)
	return &fileLock{path: path, db: db}, err
}

func (l *fileLock) check(context.Context) error { return checkSame(l.path, l.db) }
func (l *fileLock) close() error                { return nil }
