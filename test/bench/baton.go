package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

const (
	// openersMax sessions are opened at a time.
	openersMax = 32
	// valueKey is the one key of each session.
	valueKey = "value"
	// cleanUpTime bounds the closing of sessions; what is left expires.
	cleanUpTime = 5 * time.Second
	askTime     = 5 * time.Second
)

// batonSide is three nodes of the product.
type batonSide struct {
	nodes
	label string
	bin   string // "": built when it starts
	pki   string
	users []string // user addresses by node
	names []string
	admin *baton.Admin
	run   int // numbers the loads, so that their sessions differ
}

func (b *batonSide) name() string { return b.label }

func (b *batonSide) start(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := b.program(ctx, dir); err != nil {
		return err
	}
	b.pki = filepath.Join(dir, "pki")
	if err := baton.PKIInit(b.pki); err != nil {
		return err
	}
	ports, err := freePorts(2 * clusterSize)
	if err != nil {
		return err
	}
	mgmts := ports[clusterSize:]
	b.users = ports[:clusterSize]
	for i := range clusterSize {
		name := fmt.Sprintf("n%d", i+1)
		b.names = append(b.names, name)
		if err := baton.PKIIssue(b.pki, name, []string{host}); err != nil {
			return err
		}
		if err := b.spawn(b.bin, []string{
			"start", "--name", name, "--data", filepath.Join(dir, name), "--pki", b.pki,
			"--user-addr", b.users[i], "--mgmt-addr", mgmts[i],
			"--join", strings.Join(mgmts, ","), "--bootstrap-expect", fmt.Sprint(clusterSize), "--profile", "local",
		}, filepath.Join(dir, name+".log")); err != nil {
			return err
		}
	}
	if b.admin, err = baton.DialAdmin(ctx, baton.AdminConfig{Addrs: mgmts, PKI: b.pki}); err != nil {
		return err
	}
	return b.await(ctx, b.healthy)
}

// program finds or builds what the nodes run.
func (b *batonSide) program(ctx context.Context, dir string) (err error) {
	if b.bin != "" && b.bin != againstMemory {
		b.bin, err = filepath.Abs(b.bin)
		return err
	}
	root, err := proc.Root()
	if err != nil {
		return err
	}
	memory := b.bin == againstMemory
	b.bin = filepath.Join(dir, "baton")
	if memory {
		return buildMemory(ctx, root, dir, b.bin)
	}
	return proc.BuildProgram(ctx, root, "./cmd/node", b.bin, "")
}

func (b *batonSide) status(ctx context.Context) (baton.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	return b.admin.Status(ctx)
}

func (b *batonSide) healthy(ctx context.Context) error {
	st, err := b.status(ctx)
	if err != nil {
		return err
	}
	voters := 0
	for _, n := range st.Nodes {
		if n.Voter && n.State == "active" {
			voters++
		}
	}
	if !st.Healthy || voters != clusterSize {
		return fmt.Errorf("healthy %v, %d of %d nodes vote", st.Healthy, voters, clusterSize)
	}
	return nil
}

func (b *batonSide) counters(ctx context.Context) (counters, error) {
	st, err := b.status(ctx)
	var c counters
	for _, n := range st.Nodes {
		c.LogWrites += n.LogWrites
		c.Entries += n.Batch.Entries
		c.Commands += n.Batch.Commands
		for i, h := range n.Batch.Histogram {
			if i == len(c.Histogram) {
				c.Histogram = append(c.Histogram, bucket{Max: h.Max})
			}
			c.Histogram[i].Entries += h.Entries
		}
	}
	return c, err
}

func (b *batonSide) close() {
	if b.admin != nil {
		_ = b.admin.Close()
	}
	b.nodes.close()
}

// batonLoad is sessions, each of a node's own clients' connection, so that no
// connection is made beyond those asked for.
type batonLoad struct {
	value    []byte
	clients  []*baton.Client
	sessions []*baton.Session
}

func (b *batonSide) load(ctx context.Context, clients, conns, after int, value []byte) (load, error) {
	st, err := b.status(ctx)
	if err != nil {
		return nil, err
	}
	first := max(0, slices.Index(b.names, st.Leader)) + after
	b.run++
	l := &batonLoad{value: value, sessions: make([]*baton.Session, clients)}
	for i := range conns {
		c, err := baton.Dial(ctx, baton.ClientConfig{Addrs: []string{b.users[(first+i)%clusterSize]}, PKI: b.pki})
		if err != nil {
			l.close()
			return nil, err
		}
		l.clients = append(l.clients, c)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(openersMax)
	for i := range clients {
		g.Go(func() error {
			node := b.names[(first+i%conns)%clusterSize]
			s, err := l.clients[i%conns].Open(gctx, baton.OpenOptions{ID: fmt.Sprintf("bench-%d-%d", b.run, i), TTL: time.Hour, Node: node})
			if err != nil {
				return err
			}
			l.sessions[i] = s
			if s.Owner().Name != node {
				return fmt.Errorf("session %s was opened at %s, not %s", s.ID(), s.Owner().Name, node)
			}
			return l.put(gctx, i)
		})
	}
	if err := g.Wait(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *batonLoad) do(op string) func(ctx context.Context, client int) error {
	switch op {
	case opPut, opPut1, opPutFollower:
		return l.put
	case opGet:
		return func(ctx context.Context, client int) error { return l.get(ctx, client) }
	case opGetLog:
		return func(ctx context.Context, client int) error { return l.get(ctx, client, baton.Confirmed) }
	case opEcho:
		return l.echo
	}
	return nil
}

func (l *batonLoad) echo(ctx context.Context, client int) error {
	r, err := l.sessions[client].Query(ctx, baton.MethodEcho, l.value)
	if err == nil && !bytes.Equal(r.Payload, l.value) {
		err = fmt.Errorf("an echo of %d bytes had %d", len(l.value), len(r.Payload))
	}
	return err
}

func (l *batonLoad) put(ctx context.Context, client int) error {
	_, err := l.sessions[client].Put(ctx, valueKey, l.value)
	return err
}

func (l *batonLoad) get(ctx context.Context, client int, opts ...baton.QueryOption) error {
	v, err := l.sessions[client].Get(ctx, valueKey, opts...)
	if err == nil && len(v.Value) != len(l.value) {
		err = fmt.Errorf("a get found %d bytes of %d", len(v.Value), len(l.value))
	}
	return err
}

func (l *batonLoad) close() {
	ctx, cancel := context.WithTimeout(context.Background(), cleanUpTime)
	defer cancel()
	var g errgroup.Group
	g.SetLimit(openersMax)
	for _, s := range l.sessions {
		if s != nil {
			g.Go(func() error { return s.Close(ctx) })
		}
	}
	_ = g.Wait() // what is left expires, or ends with the nodes
	for _, c := range l.clients {
		_ = c.Close()
	}
}
