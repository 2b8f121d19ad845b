package sql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/jmoiron/sqlx"
	_ "modernc.org/sqlite" // database/sql driver "sqlite"
)

func (s *Store) openSQLite(ctx context.Context, path string, opt Options) error {
	s.engine, s.name = engineSQLite, "sqlite:"+path
	if path == "" {
		return errors.New("no file name")
	}
	if path == ":memory:" {
		return errors.New("a SQLite database must be a file; the store without one is called memory")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if !opt.Beside {
		if err := createFile(path); err != nil {
			return err
		}
	}
	// One file has one lock, whatever links lead to it.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	if !opt.Beside {
		if s.lock, err = lockFile(path); err != nil {
			return err
		}
	}

	q := url.Values{"mode": {"rw"}, "_txlock": {"immediate"}}
	sync := "synchronous(normal)"
	if opt.Sync == SyncFull {
		sync = "synchronous(full)"
	}
	q["_pragma"] = []string{
		"busy_timeout(5000)", "journal_mode(wal)", sync, "cache_size(-16000)",
		// A checkpoint writes each changed page once, however often it changed.
		"wal_autocheckpoint(4000)", "journal_size_limit(67108864)",
	}
	if opt.readOnly {
		q.Set("mode", "ro")
	} else {
		if s.w, err = openSQLiteFile(path, q); err != nil {
			return err
		}
		s.w.SetMaxOpenConns(1)
		s.w.SetMaxIdleConns(1)
	}

	q["_pragma"] = []string{"busy_timeout(5000)", "query_only(1)"}
	q.Del("_txlock")
	if s.r, err = openSQLiteFile(path, q); err != nil {
		return err
	}
	s.r.SetMaxOpenConns(4)
	s.r.SetMaxIdleConns(2)
	if opt.readOnly {
		return s.r.PingContext(ctx)
	}
	return s.w.PingContext(ctx)
}

func openSQLiteFile(path string, q url.Values) (*sqlx.DB, error) {
	u := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}
	return sqlx.Open("sqlite", u.String())
}

// createFile makes the file so that nobody else can read it; the write-ahead log takes its mode from it.
func createFile(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	d, err := os.Open(dir) // or a power cut could take the name away
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// checkSame tells whether path still names the file that was opened.
func checkSame(path string, opened os.FileInfo) error {
	now, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !os.SameFile(now, opened) {
		return fmt.Errorf("%s was replaced by another file", path)
	}
	return nil
}
