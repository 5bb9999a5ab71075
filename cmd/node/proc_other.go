//go:build unix && !linux

package main

import "syscall"

// childAttr: Ctrl-C reaches only this process, which ends the child.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// startOver is not done here.
func startOver([]string) {}
