package child

import "syscall"

// dieWithParent has a child get a signal when the thread ends that started it.
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) { attr.Pdeathsig = sig }
