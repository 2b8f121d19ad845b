//go:build unix

package xcapclient

import "syscall"

const nonblock = syscall.O_NONBLOCK
