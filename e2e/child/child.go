package child

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// The death signal of a child fires when the thread that started it ends, so
// one thread that lives as long as the program starts them all.
var (
	spawner  sync.Once
	spawning = make(chan func())
)

// Start starts a program in a process group of its own. On Linux it gets the
// signal when this program dies.
func Start(cmd *exec.Cmd, death syscall.Signal) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	dieWithParent(cmd.SysProcAttr, death)
	spawner.Do(func() {
		go func() {
			runtime.LockOSThread()
			for f := range spawning {
				f()
			}
		}()
	})
	result := make(chan error, 1)
	spawning <- func() { result <- cmd.Start() }
	return <-result
}

var (
	portMu    sync.Mutex
	portsUsed = map[int]bool{}
)

// FreePort gives a port of 127.0.0.1 that is free for UDP and TCP and that it
// has not given before. It lies below the kernel's ephemeral range, so that no
// connection made meanwhile takes it.
func FreePort() (int, error) {
	portMu.Lock()
	defer portMu.Unlock()
	for range 200 {
		port := 20000 + rand.IntN(12000)
		if portsUsed[port] {
			continue
		}
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		tcp, err := net.Listen("tcp4", addr)
		if err != nil {
			continue
		}
		udp, err := net.ListenPacket("udp4", addr)
		_ = tcp.Close()
		if err != nil {
			continue
		}
		_ = udp.Close()
		portsUsed[port] = true
		return port, nil
	}
	return 0, errors.New("no free port between 20000 and 32000 on 127.0.0.1")
}
