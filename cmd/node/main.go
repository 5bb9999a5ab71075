// Command node is Baton's one binary (built as bin/baton): it runs nodes, and
// it is the command line for people and scripts. It knows nothing of Raft,
// QUIC or gossip; everything it does goes through package baton.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	p := &program{
		Stdin:   os.Stdin,
		Stdout:  os.Stdout,
		Stderr:  os.Stderr,
		Env:     os.LookupEnv,
		Signals: signals,
		Calm:    calmMonitor,
		Fit:     fitProcessors,
		GiveWay: giveWay,
	}
	os.Exit(p.Run(context.Background(), os.Args[1:]))
}
