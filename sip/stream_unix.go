//go:build unix

package sip

import (
	"io"
	"net"
	"os"
	"syscall"
)

// readiness asks a TCP connection for what is there, and waits without a
// buffer when that is nothing.
type readiness struct {
	rc  syscall.RawConn
	try func(fd uintptr) bool
	n   int
	err error
}

func (in *input) read() (int, error) {
	r := &in.ready
	if r.rc == nil {
		tc, ok := in.pace.c.nc.(*net.TCPConn)
		if !ok {
			return in.readAny()
		}
		var err error
		if r.rc, err = tc.SyscallConn(); err != nil {
			return 0, err
		}
		r.try = in.try
	}
	if err := r.rc.Read(r.try); err != nil {
		return 0, err
	}
	return r.n, r.err
}

// try reads once. False means that there is nothing yet.
func (in *input) try(fd uintptr) bool {
	in.take()
	for {
		n, err := syscall.Read(int(fd), in.buf[len(in.buf):cap(in.buf)])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			if len(in.buf) == 0 {
				in.drop()
			}
			return false
		case err != nil:
			n, err = 0, os.NewSyscallError("read", err)
		case n == 0:
			err = io.EOF
		}
		in.buf = in.buf[:len(in.buf)+n]
		in.ready.n, in.ready.err = n, err
		return true
	}
}
