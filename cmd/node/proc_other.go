//go:build unix && !linux

package main

import (
	"errors"
	"syscall"
)

// childAttr: Ctrl-C reaches only this process, which ends the child.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// startOver is not done here.
func startOver([]string) {}

// giveWay is not done here: niceness is a thread's own.
func giveWay(int) error { return errors.ErrUnsupported }
