package crash

import "syscall"

// dieWithParent has a child get a signal when the thread ends that started it,
// which Run and StartPostgres keep.
func dieWithParent(attr *syscall.SysProcAttr, sig syscall.Signal) *syscall.SysProcAttr {
	attr.Pdeathsig = sig
	return attr
}
