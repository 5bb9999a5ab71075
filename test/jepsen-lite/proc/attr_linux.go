package proc

import "syscall"

// childAttr: a child dies with the thread that started it, and gets no signal
// that a terminal sends to this process's group.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
