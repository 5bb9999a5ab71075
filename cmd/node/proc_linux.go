package main

import "syscall"

// childAttr: the child dies with this process, and Ctrl-C reaches only this
// process, which ends the child in its own way.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
