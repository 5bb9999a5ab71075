package main

import (
	"os"
	"syscall"
)

// childAttr: the child dies with this process, and Ctrl-C reaches only this
// process, which ends the child in its own way.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// startOver runs this program anew in this process; it returns only if it cannot.
func startOver(env []string) {
	if exe, err := os.Executable(); err == nil {
		_ = syscall.Exec(exe, os.Args, env)
	}
}
