package main

import (
	"os"
	"strconv"
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

// giveWay has this process, all its threads and those they will start, yield the
// processors to others that want them.
func giveWay(nice int) error {
	for range 2 { // a thread may have been started by one that was not done yet
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range threads {
			if id, err := strconv.Atoi(t.Name()); err == nil {
				if err := syscall.Setpriority(syscall.PRIO_PROCESS, id, nice); err != nil && err != syscall.ESRCH {
					return err
				}
			}
		}
	}
	return nil
}
