package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"

	"github.com/baton-cluster/baton/test/jepsen-lite/check"
	"github.com/baton-cluster/baton/test/jepsen-lite/control"
	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
	"github.com/baton-cluster/baton/test/jepsen-lite/netns"
	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

// cluster is the nodes under test, their network and an administrator.
type cluster struct {
	mesh    *mesh.Mesh
	spaces  *netns.Net // hosts have networks of their own; nil: addresses on loopback
	spawner *proc.Spawner
	bin     string // the node program
	dir     string
	sockets string // directory of the control sockets, short as their names must be
	control []*control.Client
	pki     string
	n       int
	voters  int // how many of n vote; the others follow, as spares
	started int // of n, so far
	clients int
	admin   *baton.Admin   // asks any node
	each    []*baton.Admin // asks one

	mu       sync.Mutex
	procs    []*proc.Process
	expected []bool            // the process was told to end
	names    map[string]string // of node ids
	servings map[servingKey]check.Serving
	live     func() []string // ids of the sessions that have load
	displace func()
	complain func(check, detail string)
	deaths   []string // processes that ended by themselves
}

type servingKey struct {
	session     string
	epoch       uint64
	node        string
	incarnation uint64
}

// privateNet is where hosts are that have networks of their own; nothing outside
// can be reached from there.
var privateNet = [3]byte{10, 99, 0}

var errNoSpaces = errors.New("network namespaces cannot be had")

// newCluster makes certificates and proxies and starts every node.
func newCluster(ctx context.Context, bin, dir string, nodes, clients int, seed uint64, spaces bool) (*cluster, error) {
	c := &cluster{
		bin: bin, dir: dir, pki: filepath.Join(dir, "pki"), n: nodes, voters: nodes - 1 + nodes%2, clients: clients,
		spawner: proc.NewSpawner(), procs: make([]*proc.Process, nodes), expected: make([]bool, nodes),
		names: map[string]string{}, servings: map[servingKey]check.Serving{}, live: func() []string { return nil }, displace: func() {},
		complain: func(string, string) {},
	}
	var err error
	if c.sockets, err = os.MkdirTemp("", "jl-"); err != nil {
		c.close()
		return nil, err
	}
	for i := range nodes {
		c.control = append(c.control, control.NewClient(c.socket(i)))
	}
	conf := mesh.Config{Seed: seed, Nodes: nodes, Clients: clients}
	if spaces {
		own, admin := mesh.Own(privateNet, nodes)
		if c.spaces, err = netns.New(mesh.Hosts(privateNet, nodes, clients), own, admin); err != nil {
			c.close()
			return nil, fmt.Errorf("%w: %w", errNoSpaces, err)
		}
		conf.Net, conf.Drop = &privateNet, c.spaces.Drop
	}
	if c.mesh, err = mesh.New(conf); err != nil {
		c.close()
		return nil, err
	}
	if err := c.boot(ctx); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *cluster) boot(ctx context.Context) error {
	if err := baton.PKIInit(c.pki); err != nil {
		return err
	}
	var mgmt []string
	for i := range c.n {
		host, _, _ := net.SplitHostPort(c.mesh.PublicUser(i))
		if err := baton.PKIIssue(c.pki, mesh.Node(i), []string{host}); err != nil {
			return err
		}
		mgmt = append(mgmt, c.mesh.RealMgmt(i))
	}
	for _, addr := range mgmt {
		a, err := baton.DialAdmin(ctx, baton.AdminConfig{Addrs: []string{addr}, PKI: c.pki})
		if err != nil {
			return err
		}
		c.each = append(c.each, a)
	}
	// A cluster is formed by as many as are expected; spares join it.
	if err := c.startUpTo(ctx, c.voters, mgmt); err != nil {
		return err
	}
	return c.startUpTo(ctx, c.n, mgmt)
}

// startUpTo has n nodes run, and waits until they are well.
func (c *cluster) startUpTo(ctx context.Context, n int, mgmt []string) error {
	for ; c.started < n; c.started++ {
		if err := c.Start(c.started); err != nil {
			return err
		}
	}
	// The administrator goes around the proxies where it can, and through them
	// as a source that is never held up.
	var dead error
	err := proc.Poll(ctx, 100*time.Millisecond, func() error {
		if d := c.died(); len(d) > 0 {
			dead = errors.New(d[0])
			return nil
		}
		var err error
		if c.admin == nil {
			c.admin, err = baton.DialAdmin(ctx, baton.AdminConfig{Addrs: mgmt, PKI: c.pki})
		}
		if err != nil {
			return fmt.Errorf("no node answers: %w; see %s", err, c.dir)
		}
		return c.healthy(ctx)
	})
	return errors.Join(dead, err)
}

// close ends every process that this run started, and the network.
func (c *cluster) close() {
	for _, a := range append(c.each, c.admin) {
		if a != nil {
			a.Close()
		}
	}
	for i := range c.procs {
		_ = c.Kill(i)
	}
	c.spawner.Close()
	if c.mesh != nil {
		c.mesh.Close()
	}
	if c.spaces != nil {
		c.spaces.Close()
	}
	_ = os.RemoveAll(c.sockets)
}

func (c *cluster) socket(i int) string { return filepath.Join(c.sockets, mesh.Node(i)) }

func (c *cluster) data(i int) string { return filepath.Join(c.dir, mesh.Node(i)) }

func (c *cluster) logPath(i int) string { return filepath.Join(c.dir, mesh.Node(i)+".log") }

func (c *cluster) args(i int) []string {
	var join []string
	for j := range c.n {
		join = append(join, c.mesh.PublicMgmt(j))
	}
	return []string{
		"--name", mesh.Node(i), "--data", c.data(i), "--pki", c.pki, "--control", c.socket(i),
		"--user-addr", c.mesh.RealUser(i), "--mgmt-addr", c.mesh.RealMgmt(i),
		"--advertise-user-addr", c.mesh.PublicUser(i), "--advertise-mgmt-addr", c.mesh.PublicMgmt(i),
		"--join", strings.Join(join, ","), "--bootstrap-expect", fmt.Sprint(c.voters),
	}
}

// healthy is nil when every node is active, as many vote as are to, and there is a
// leader.
func (c *cluster) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := c.admin.Status(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	for _, n := range s.Nodes {
		c.names[n.ID] = n.Name
	}
	c.mu.Unlock()
	if !s.Healthy || len(s.Nodes) != c.started || s.Leader == "" {
		return fmt.Errorf("the cluster is not healthy: leader %q, %d nodes", s.Leader, len(s.Nodes))
	}
	voters := 0
	for _, n := range s.Nodes {
		if n.State != "active" || !n.Reachable {
			return fmt.Errorf("node %s is %s, reachable %v", n.Name, n.State, n.Reachable)
		}
		if n.Voter {
			voters++
		}
	}
	if voters != c.voters {
		return fmt.Errorf("%d nodes vote, not %d", voters, c.voters)
	}
	return nil
}

// network is the operating system's, from a client host's own address.
type network struct {
	seam.OSNetwork
	ip     string
	host   string
	spaces *netns.Net // nil: the host is an address only
}

func (n network) ListenPacket(string) (conn net.PacketConn, err error) {
	listen := func() error {
		conn, err = n.OSNetwork.ListenPacket(net.JoinHostPort(n.ip, "0"))
		return err
	}
	if n.spaces == nil {
		return conn, listen()
	}
	err = n.spaces.Do(n.host, listen)
	return conn, err
}

// network is that of client host i.
func (c *cluster) network(i int) network {
	return network{ip: c.mesh.ClientIP(i), host: mesh.Client(i), spaces: c.spaces}
}

// dial makes a client on client host i.
func (c *cluster) dial(ctx context.Context, i int) (*baton.Client, error) {
	var addrs []string
	for j := range c.n {
		addrs = append(addrs, c.mesh.PublicUser((i+j)%c.n))
	}
	return baton.Dial(ctx, baton.ClientConfig{Addrs: addrs, PKI: c.pki, Network: c.network(i)})
}

// collect asks the nodes what they served, as often as step, until ctx ends. A
// node forgets at kill -9; what it told before stays.
func (c *cluster) collect(ctx context.Context, step time.Duration) {
	t := time.NewTicker(step)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			_ = c.collectOnce(ctx) // nodes are down now and then
		case <-ctx.Done():
			return
		}
	}
}

func (c *cluster) collectOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	errs := make([]error, len(c.each))
	var wg sync.WaitGroup
	for i, a := range c.each {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var list []baton.Serving
			list, errs[i] = a.Servings(ctx)
			c.note(list)
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (c *cluster) note(list []baton.Serving) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range list {
		if s.First == 0 {
			continue // activated, and nothing served yet
		}
		k := servingKey{s.Session, s.Epoch, s.Worker, s.Incarnation}
		v, had := c.servings[k]
		if !had {
			v = check.Serving{Session: s.Session, Epoch: s.Epoch, Node: s.Worker, Incarnation: s.Incarnation, First: s.First, Last: s.Last}
		}
		v.First, v.Last = min(v.First, s.First), max(v.Last, s.Last)
		c.servings[k] = v
	}
}

// served returns what was collected.
func (c *cluster) served() []check.Serving {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []check.Serving
	for _, s := range c.servings {
		out = append(out, s)
	}
	return out
}

// nameOf maps node ids to names.
func (c *cluster) nameOf() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]string{}
	for k, v := range c.names {
		out[k] = v
	}
	return out
}

// died returns the processes that ended without being told to.
func (c *cluster) died() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.deaths...)
}

// recover undoes whatever may be left and waits until the cluster is whole.
func (c *cluster) recover(ctx context.Context) error {
	c.mesh.Heal()
	for i := range c.n {
		if c.spaces != nil {
			_ = c.LinkDown(i, false)
		}
		_ = c.Resume(i)
		set, cancel := context.WithTimeout(ctx, adminLimit)
		_ = c.control[i].Set(set, control.Faults{})
		cancel()
		if p := c.proc(i); p == nil || p.Ended() {
			if err := c.Start(i); err != nil {
				return err
			}
		}
	}
	return proc.Poll(ctx, 200*time.Millisecond, func() error {
		err := c.healthy(ctx)
		if err != nil {
			for i := range c.n { // a drain may have been left by one who was refused
				_ = c.Undrain(ctx, i)
			}
		}
		return err
	})
}

// tempDir makes the run's directory; keep names one that stays.
func tempDir(keep string) (dir string, remove func(), err error) {
	if keep != "" {
		dir, err = filepath.Abs(keep)
		if err == nil {
			err = os.MkdirAll(dir, 0o700)
		}
		return dir, func() {}, err
	}
	dir, err = os.MkdirTemp("", "jepsen-lite-")
	return dir, func() { os.RemoveAll(dir) }, err
}
