// Node composes the same node as cmd/node, out of the same parts, with seams that
// can be made faulty while it runs: its disk loses what was not synced when the
// process is killed, and can be full, fail to sync or stall; its clock can run
// fast or slow, show a wrong date, and pretend that the machine slept. So no
// switch for faults lives in the product. See package control for the switches.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/baton-cluster/baton"
)

func main() {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if err := run(os.Args[1:], signals, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

// run is the node's life. It ends with nil if it was told to stop.
func run(args []string, signals <-chan os.Signal, out io.Writer) error {
	s := newSwitches()
	cfg, socket, err := parse(args, s, out)
	if err != nil {
		return err
	}
	if err := s.serve(socket); err != nil {
		return fmt.Errorf("the control socket: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	told := make(chan struct{})
	go func() {
		<-signals
		close(told)
		stop()
	}()
	node, err := baton.Open(ctx, cfg)
	if err != nil {
		if ctx.Err() != nil {
			return nil // told to stop before it had joined
		}
		return err
	}
	s.node.Store(node)
	select {
	case <-node.Done():
		err := node.Err()
		_ = node.Close()
		if err == nil {
			err = errors.New("the node stopped by itself")
		}
		return err
	case <-told:
	}
	return errors.Join(node.Shutdown(context.Background()), node.Close())
}

func parse(args []string, s *switches, out io.Writer) (cfg baton.Config, socket string, err error) {
	var join string
	f := flag.NewFlagSet("node", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&cfg.Name, "name", "", "the node's name")
	f.StringVar(&cfg.Data, "data", "", "data directory")
	f.StringVar(&cfg.PKI, "pki", "", "directory with the cluster's certificates")
	f.StringVar(&cfg.UserAddr, "user-addr", "", "where it listens for clients")
	f.StringVar(&cfg.MgmtAddr, "mgmt-addr", "", "where it listens for nodes")
	f.StringVar(&cfg.AdvertiseUser, "advertise-user-addr", "", "as clients are told")
	f.StringVar(&cfg.AdvertiseMgmt, "advertise-mgmt-addr", "", "as nodes are told")
	f.StringVar(&join, "join", "", "management addresses, with commas between")
	f.IntVar(&cfg.Expect, "bootstrap-expect", 0, "how many empty nodes form a cluster")
	f.StringVar(&socket, "control", "", "socket to make, for switching faults on and off")
	if err := f.Parse(args); err != nil {
		return cfg, "", err
	}
	if socket == "" {
		return cfg, "", errors.New("-control is needed")
	}
	cfg.Join = strings.Split(join, ",")
	cfg.Profile, cfg.Version = "local", "jepsen"
	cfg.Mux, cfg.Clock, cfg.Disk = app(), newClock(s), disk{s}
	cfg.ReplaceDeadAfter = replaceDeadAfter
	cfg.Log = slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return cfg, socket, nil
}

// replaceDeadAfter lets a spare have a dead voter's vote within a run.
const replaceDeadAfter = 15 * time.Second
