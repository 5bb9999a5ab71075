package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/baton-cluster/baton"

	"github.com/baton-cluster/baton/test/jepsen-lite/mesh"
	"github.com/baton-cluster/baton/test/jepsen-lite/nemesis"
	"github.com/baton-cluster/baton/test/jepsen-lite/proc"
)

// The cluster as the nemesis sees it.
var _ nemesis.World = (*cluster)(nil)

func (c *cluster) Nodes() int   { return c.n }
func (c *cluster) Clients() int { return c.clients }

// Sessions counts those with load.
func (c *cluster) Sessions() int { return len(c.live()) }

func (c *cluster) index(name string) (int, error) {
	for i := range c.n {
		if mesh.Node(i) == name {
			return i, nil
		}
	}
	return -1, fmt.Errorf("no node is called %q", name)
}

// Leader is the number of the node that leads.
func (c *cluster) Leader(ctx context.Context) (int, error) {
	s, err := c.admin.Status(ctx)
	if err != nil {
		return -1, err
	}
	return c.index(s.Leader)
}

func (c *cluster) session(k int) (string, error) {
	live := c.live()
	if k >= len(live) {
		return "", errors.New("that session is gone")
	}
	return live[k], nil
}

// Owner is the number of the node that owns session k.
func (c *cluster) Owner(ctx context.Context, k int) (int, error) {
	id, err := c.session(k)
	if err != nil {
		return -1, err
	}
	return c.ownerSaidBy(ctx, c.admin, id)
}

// Shared picks a session that several clients read.
func (c *cluster) Shared(pick uint64) (string, error) {
	live := slices.DeleteFunc(c.live(), func(id string) bool { return !strings.Contains(id, "-"+string(shared)+"-") })
	if len(live) == 0 {
		return "", errors.New("no session is shared")
	}
	slices.Sort(live)
	return live[pick%uint64(len(live))], nil
}

// OwnerOf asks a node for the number of the one that owns the session.
func (c *cluster) OwnerOf(ctx context.Context, id string, ask int) (int, error) {
	return c.ownerSaidBy(ctx, c.each[ask], id)
}

func (c *cluster) ownerSaidBy(ctx context.Context, a *baton.Admin, id string) (int, error) {
	s, err := a.Session(ctx, id)
	if err != nil {
		return -1, err
	}
	return c.index(s.Owner)
}

func (c *cluster) proc(i int) *proc.Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.procs[i]
}

func (c *cluster) expect(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expected[i] = true
}

// forgive: node i has got over it, so if it ends now, that is a death.
func (c *cluster) forgive(i int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expected[i] = false
}

// Kill ends node i at once.
func (c *cluster) Kill(i int) error {
	c.expect(i)
	if p := c.proc(i); p != nil {
		p.Kill()
	}
	return nil
}

// Start starts node i.
func (c *cluster) Start(i int) error { return c.start(i, false) }

// start: mayEnd, if it is no death should the node end by itself.
func (c *cluster) start(i int, mayEnd bool) error {
	var enter func() (func() error, error)
	if c.spaces != nil {
		enter = func() (func() error, error) { return c.spaces.Join(mesh.Node(i)) }
	}
	p, err := c.spawner.Start(c.bin, c.args(i), c.logPath(i), enter)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.procs[i], c.expected[i] = p, mayEnd
	c.mu.Unlock()
	go func() {
		<-p.Done()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.procs[i] == p && !c.expected[i] {
			c.deaths = append(c.deaths, fmt.Sprintf("%s ended by itself: %s", mesh.Node(i), lastLine(c.logPath(i))))
		}
	}()
	return nil
}

func lastLine(path string) string {
	lines := strings.Split(strings.TrimSpace(proc.Tail(path, 2000)), "\n")
	return lines[len(lines)-1]
}

// Stop ends node i in order.
func (c *cluster) Stop(ctx context.Context, i int) error {
	c.expect(i)
	return c.proc(i).Stop(ctx)
}

// Pause and Resume stop node i's process where it stands, and let it go on.
func (c *cluster) Pause(i int) error  { return c.proc(i).Signal(syscall.SIGSTOP) }
func (c *cluster) Resume(i int) error { return c.proc(i).Signal(syscall.SIGCONT) }

// adminLimit bounds one step of the administrator under faults.
const adminLimit = 5 * time.Second

// MoveLeader has the leader hand leadership on.
func (c *cluster) MoveLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adminLimit)
	defer cancel()
	return c.admin.TransferLeader(ctx)
}

// MoveVote moves a vote to a node that follows: where all vote there is none.
func (c *cluster) MoveVote(ctx context.Context, pick uint64) (what string, err error) {
	ctx, cancel := context.WithTimeout(ctx, adminLimit)
	defer cancel()
	s, err := c.admin.Status(ctx)
	if err != nil {
		return "somebody", err
	}
	var voters []string
	for _, n := range s.Nodes {
		if n.Voter {
			voters = append(voters, n.Name)
		}
	}
	if len(voters) == 0 {
		return "nobody", nil
	}
	from := voters[pick%uint64(len(voters))]
	if from == s.Leader { // it would be refused
		if err := c.admin.TransferLeader(ctx); err != nil {
			return from, err
		}
	}
	change, err := c.admin.Replace(ctx, baton.ReplaceRequest{Node: from})
	if err != nil {
		return from, err
	}
	return from + " to " + change.Heir, nil
}

// Drain starts to empty node i.
func (c *cluster) Drain(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, adminLimit)
	defer cancel()
	_, err := c.admin.Drain(ctx, mesh.Node(i), baton.DrainOptions{}, nil)
	if errors.Is(err, baton.ErrDeadlineExceeded) {
		return nil // it goes on without us
	}
	return err
}

// Rebalance starts one.
func (c *cluster) Rebalance(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, adminLimit)
	defer cancel()
	_, err := c.admin.Rebalance(ctx, baton.RebalanceOptions{})
	return err
}

// Undrain ends that.
func (c *cluster) Undrain(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, adminLimit)
	defer cancel()
	return c.admin.Undrain(ctx, mesh.Node(i))
}

// Migrate moves session k to node to.
func (c *cluster) Migrate(ctx context.Context, k, to int) error {
	id, err := c.session(k)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, adminLimit)
	defer cancel()
	_, err = c.admin.Migrate(ctx, baton.MigrateRequest{Session: id, To: mesh.Node(to), Reason: "load_balancing"})
	return err
}

// Fence ends node i's incarnation; being alive, it registers anew.
func (c *cluster) Fence(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, adminLimit)
	defer cancel()
	return c.admin.Fence(ctx, mesh.Node(i))
}

// Displace has other clients attach to the sessions under load.
func (c *cluster) Displace() { c.displace() }

// LinkDown takes the link of node i's own network down, or brings it up.
func (c *cluster) LinkDown(i int, down bool) error {
	if c.spaces == nil {
		return errors.New("nodes have no networks of their own here")
	}
	return c.spaces.SetLink(mesh.Node(i), !down)
}

// SetLink and Sever act on the network.
func (c *cluster) SetLink(from, to string, p mesh.Policy) { c.mesh.Set(from, to, p) }
func (c *cluster) Sever(a, b string)                      { c.mesh.Sever(a, b) }
