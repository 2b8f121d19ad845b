//go:build !linux

package sql

import "syscall"

func dieWithParent(*syscall.SysProcAttr) {}
