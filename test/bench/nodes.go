package main

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

const (
	// clusterSize nodes on each side.
	clusterSize = 3
	host        = "127.0.0.1"
)

// nodes are the processes of one side.
type nodes struct {
	spawner *proc.Spawner
	procs   []*proc.Process
	logs    []string
}

func (n *nodes) spawn(bin string, args []string, log string) error {
	if n.spawner == nil {
		n.spawner = proc.NewSpawner()
	}
	p, err := n.spawner.Start(bin, args, log, nil)
	if err != nil {
		return err
	}
	n.procs, n.logs = append(n.procs, p), append(n.logs, log)
	return nil
}

func (n *nodes) pids() []int {
	var out []int
	for _, p := range n.procs {
		out = append(out, p.Pid())
	}
	return out
}

// alive is an error if a process has ended, with its last words.
func (n *nodes) alive() error {
	const lastWords = 600
	for i, p := range n.procs {
		if p.Ended() {
			return fmt.Errorf("a node ended: %s", proc.Tail(n.logs[i], lastWords))
		}
	}
	return nil
}

// await polls ready until it is content, unless a process ends before.
func (n *nodes) await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	return poll(ctx, startBudget, func(ctx context.Context) error {
		if err := n.alive(); err != nil {
			cancel(err)
			return err
		}
		return ready(ctx)
	})
}

// close ends the processes, at once: their data goes too.
func (n *nodes) close() {
	for _, p := range n.procs {
		p.Kill()
	}
	n.procs = nil
	if n.spawner != nil {
		n.spawner.Close()
		n.spawner = nil
	}
}

// freePorts finds count ports that are free for both TCP and UDP. They are held
// until all are found, so that none comes twice.
func freePorts(count int) ([]string, error) {
	const tries = 100
	var out []string
	for range tries {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, err
		}
		defer l.Close()
		addr := l.Addr().String()
		u, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue // taken by somebody's UDP
		}
		defer u.Close()
		if out = append(out, addr); len(out) == count {
			return out, nil
		}
	}
	return nil, fmt.Errorf("no %s free ports were found", strconv.Itoa(count))
}
