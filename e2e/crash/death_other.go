//go:build !linux

package crash

import "syscall"

func dieWithParent(attr *syscall.SysProcAttr, _ syscall.Signal) *syscall.SysProcAttr { return attr }
