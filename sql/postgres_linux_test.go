package sql

import "syscall"

// A run that is killed must not leave its PostgreSQL behind.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGINT }
