package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/baton-cluster/baton"
)

const (
	fleetSize = 3
	// formWithin is how long a fresh cluster may take to form, on a busy machine.
	formWithin = 30 * time.Second
	// terminateWithin is how long a node may take from SIGTERM to its end.
	terminateWithin = 20 * time.Second
	fleetHost       = "127.0.0.1"
)

// fleet is three real nodes on loopback, each a process of its own.
type fleet struct {
	dir   string
	pki   string
	bin   string
	spawn *spawner
	nodes []*fleetNode
	own   bool // dir was made here, and goes with the fleet

	mu    sync.Mutex
	admin *baton.Admin
	away  map[string]bool // nodes not to ask: killed, stopped or restarting
}

// fleetNode is one node: its settings stay while processes come and go.
type fleetNode struct {
	name, user, mgmt string
	args             []string
	log              string
	proc             *proc
}

// newFleet prepares certificates and ports; start runs it. An empty dir means a
// temporary one. basePort 0 takes free ports; else node i gets user port
// basePort+10i and the management port after it.
func newFleet(bin, dir string, basePort int) (*fleet, error) {
	f := &fleet{bin: bin, dir: dir, spawn: newSpawner(), away: map[string]bool{}}
	if err := f.prepare(basePort); err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *fleet) prepare(basePort int) (err error) {
	if f.bin == "" {
		if f.bin, err = os.Executable(); err != nil {
			return err
		}
	}
	if f.dir == "" {
		if f.dir, err = os.MkdirTemp("", "baton-nodes-"); err != nil {
			return err
		}
		f.own = true
	} else if err = os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	f.pki = filepath.Join(f.dir, "pki")
	fresh := false
	if _, err = os.Stat(f.pki); errors.Is(err, os.ErrNotExist) {
		fresh = true
		err = baton.PKIInit(f.pki)
	}
	if err != nil {
		return err
	}
	ports, err := takePorts(basePort)
	if err != nil {
		return err
	}
	var join []string
	for i := range fleetSize {
		join = append(join, hostPort(ports[i].mgmt))
	}
	for i := range fleetSize {
		n := &fleetNode{
			name: fmt.Sprintf("n%d", i+1),
			user: hostPort(ports[i].user),
			mgmt: join[i],
		}
		if fresh {
			if err := baton.PKIIssue(f.pki, n.name, []string{fleetHost, "localhost"}); err != nil {
				return err
			}
		}
		n.log = filepath.Join(f.dir, n.name+".log")
		n.args = []string{
			"start", "--name", n.name, "--data", filepath.Join(f.dir, n.name),
			"--user-addr", n.user, "--mgmt-addr", n.mgmt, "--pki", f.pki,
			"--join", strings.Join(join, ","), "--bootstrap-expect", strconv.Itoa(fleetSize), "--profile", "local",
		}
		f.nodes = append(f.nodes, n)
	}
	return nil
}

// logLevel sets how much the nodes write to their logs. Call it before run.
func (f *fleet) logLevel(level string) {
	for _, n := range f.nodes {
		n.args = append(n.args, "--log-level", level)
	}
}

// http gives the first node an HTTP port; empty: none. Call it before run.
func (f *fleet) http(addr string) {
	if addr != "" {
		f.nodes[0].args = append(f.nodes[0].args, "--http", addr)
	}
}

func hostPort(port int) string { return net.JoinHostPort(fleetHost, strconv.Itoa(port)) }

// profile sets the nodes' timing, instead of that for nodes on one machine. Call it
// before run.
func (f *fleet) profile(name string) {
	for _, n := range f.nodes {
		n.args = append(n.args, "--profile", name)
	}
}

type portPair struct{ user, mgmt int }

// takePorts finds ports for all nodes. Free ones are held until all are found,
// so that no two nodes get the same.
func takePorts(base int) ([]portPair, error) {
	var held []interface{ Close() error }
	defer func() {
		for _, h := range held {
			_ = h.Close()
		}
	}()
	packet := func(port int) (int, error) {
		c, err := net.ListenPacket("udp", net.JoinHostPort(fleetHost, strconv.Itoa(port)))
		if err != nil {
			return 0, err
		}
		held = append(held, c)
		return c.LocalAddr().(*net.UDPAddr).Port, nil
	}
	both := func(port int) (int, error) {
		l, err := net.Listen("tcp", net.JoinHostPort(fleetHost, strconv.Itoa(port)))
		if err != nil {
			return 0, err
		}
		held = append(held, l)
		return packet(l.Addr().(*net.TCPAddr).Port)
	}
	var out []portPair
	for i := range fleetSize {
		var want portPair
		if base != 0 {
			want = portPair{base + 10*i, base + 10*i + 1}
		}
		user, err := packet(want.user)
		if err != nil {
			return nil, err
		}
		mgmt, err := both(want.mgmt)
		for try := 0; err != nil && base == 0 && try < 10; try++ {
			mgmt, err = both(0) // the TCP port's number was taken for UDP
		}
		if err != nil {
			return nil, err
		}
		out = append(out, portPair{user, mgmt})
	}
	return out, nil
}

// run starts all nodes and waits until they form a healthy cluster.
func (f *fleet) run(ctx context.Context) error {
	for _, n := range f.nodes {
		if err := f.startNode(n); err != nil {
			return err
		}
	}
	return f.waitHealthy(ctx, formWithin)
}

func (f *fleet) startNode(n *fleetNode) (err error) {
	n.proc, err = f.spawn.start(f.bin, n.args, n.log)
	return err
}

// waitHealthy waits until all nodes are reachable, active and agree. A node
// whose process has ended is reported at once.
func (f *fleet) waitHealthy(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the cluster was not healthy within %s", limit))
	defer cancel()
	last := errors.New("no answer")
	for {
		for _, n := range f.nodes {
			if n.proc == nil || n.proc.ended() {
				return fmt.Errorf("node %s ended: %s", n.name, n.lastWords())
			}
		}
		st, err := f.status(ctx)
		switch {
		case err == nil && st.Healthy && len(st.Nodes) == fleetSize && voters(st) == fleetSize:
			return nil
		case err == nil:
			last = errors.New(whatAils(st, fleetSize))
		case ctx.Err() == nil:
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-time.After(healthEvery):
		}
	}
}

func voters(st baton.Status) int {
	n := 0
	for _, e := range st.Nodes {
		if e.Voter {
			n++
		}
	}
	return n
}

func (n *fleetNode) lastWords() string {
	if n.proc == nil {
		return "never started"
	}
	if t := n.proc.tail(3); t != "" {
		return t
	}
	return fmt.Sprint(n.proc.err)
}

// askWithin bounds one question to the cluster.
const askWithin = 5 * time.Second

// ask calls fn with a connection to the cluster's management plane, which is
// kept until it fails.
func (f *fleet) ask(ctx context.Context, fn func(context.Context, *baton.Admin) error) error {
	a, err := f.dialAdmin(ctx)
	if err != nil {
		return err
	}
	if err = fn(ctx, a); err != nil && exitCode(err) == exitNoCluster {
		f.drop(a)
	}
	return err
}

// drop makes the next question dial anew.
func (f *fleet) drop(a *baton.Admin) {
	f.mu.Lock()
	if f.admin == a {
		f.admin = nil
	}
	f.mu.Unlock()
	if a != nil {
		// Others may still be asking through it: their calls fail, and they retry.
		_ = a.Close()
	}
}

// setAway says whether a node is not to be asked: a stopped one would take the
// question and never answer.
func (f *fleet) setAway(name string, away bool) {
	f.mu.Lock()
	f.away[name] = away
	a := f.admin
	f.mu.Unlock()
	if away {
		f.drop(a)
	}
}

func (f *fleet) dialAdmin(ctx context.Context) (*baton.Admin, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.admin != nil {
		return f.admin, nil
	}
	var addrs []string
	for _, n := range f.nodes {
		if !f.away[n.name] {
			addrs = append(addrs, n.mgmt)
		}
	}
	a, err := baton.DialAdmin(ctx, baton.AdminConfig{Addrs: addrs, PKI: f.pki})
	if err == nil {
		f.admin = a
	}
	return a, err
}

// status asks any node.
func (f *fleet) status(ctx context.Context) (st baton.Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	err = f.ask(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		st, err = a.Status(ctx)
		return err
	})
	return st, err
}

// node finds a node by its name, nil if there is none.
func (f *fleet) node(name string) *fleetNode {
	for _, n := range f.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// users lists the user addresses, node i's first.
func (f *fleet) users(i int) []string {
	var out []string
	for k := range f.nodes {
		out = append(out, f.nodes[(i+k)%len(f.nodes)].user)
	}
	return out
}

func (f *fleet) mgmts() []string {
	var out []string
	for _, n := range f.nodes {
		out = append(out, n.mgmt)
	}
	return out
}

// halt ends all nodes: in an orderly way if polite, else at once.
func (f *fleet) halt(polite bool) {
	var g errgroup.Group
	for _, n := range f.nodes {
		if n.proc == nil {
			continue
		}
		g.Go(func() error {
			if polite {
				_ = n.proc.signal(syscall.SIGCONT)
				_ = n.proc.terminate(terminateWithin)
				return nil
			}
			n.proc.kill()
			return nil
		})
	}
	_ = g.Wait()
}

// firstEnd delivers the first node whose process ends, unless ctx ends before.
func (f *fleet) firstEnd(ctx context.Context) <-chan *fleetNode {
	first := make(chan *fleetNode, len(f.nodes))
	for _, n := range f.nodes {
		go func() {
			select {
			case <-n.proc.done:
				first <- n
			case <-ctx.Done():
			}
		}()
	}
	return first
}

// cpuBut is the processor time that the running nodes but one have used so far.
func (f *fleet) cpuBut(but *fleetNode) (sum time.Duration) {
	for _, n := range f.nodes {
		if n != but && n.proc != nil && !n.proc.ended() {
			sum += cpuOf(n.proc.pid())
		}
	}
	return sum
}

// cpu is the processor time that the ended nodes used.
func (f *fleet) cpu() time.Duration {
	var sum time.Duration
	for _, n := range f.nodes {
		if n.proc != nil && n.proc.ended() && n.proc.cmd.ProcessState != nil {
			sum += n.proc.cmd.ProcessState.UserTime() + n.proc.cmd.ProcessState.SystemTime()
		}
	}
	return sum
}

// close kills what still runs and removes the directory if it was made here.
// It may be called again.
func (f *fleet) close() {
	f.mu.Lock()
	if f.admin != nil {
		_ = f.admin.Close()
		f.admin = nil
	}
	f.mu.Unlock()
	f.halt(false)
	f.spawn.close()
	if f.own {
		_ = os.RemoveAll(f.dir)
	}
}
