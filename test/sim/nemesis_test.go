package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/baton-cluster/baton"
)

// fault is one kind of trouble. start makes it, and returns what ends it.
type fault struct {
	name  string
	start func(n *nemesis) (end func())
}

// nemesis makes trouble as its seed has it.
type nemesis struct {
	w      *world
	rng    *rand.Rand
	faults []fault // that it draws from
}

// envFaults names the faults that are drawn from, by commas; all if empty. Where
// they are named, there is no calm between them.
const envFaults = "BATON_SIM_FAULTS"

func newNemesis(w *world, rng *rand.Rand) *nemesis {
	n := &nemesis{w: w, rng: rng, faults: faults}
	if only := os.Getenv(envFaults); only != "" {
		n.faults = nil
		for name := range strings.SplitSeq(only, ",") {
			i := slices.IndexFunc(faults, func(f fault) bool { return f.name == name })
			if i < 0 {
				w.t.Fatalf("%s names %q, which is no fault", envFaults, name)
			}
			n.faults = append(n.faults, faults[i])
		}
		w.grade.calm = 0
	}
	return n
}

func (n *nemesis) machine() *machine { return n.w.machines[n.rng.IntN(len(n.w.machines))] }

// two distinct machines.
func (n *nemesis) pair() (a, b *machine) {
	i := n.rng.IntN(len(n.w.machines))
	j := (i + 1 + n.rng.IntN(len(n.w.machines)-1)) % len(n.w.machines)
	return n.w.machines[i], n.w.machines[j]
}

// hosts are all that m talks to.
func (n *nemesis) hosts(m *machine) (all []string) {
	for _, o := range n.w.machines {
		if o != m {
			all = append(all, o.ip)
		}
	}
	for i := range n.w.clients {
		all = append(all, n.w.clients[i].ip(i))
	}
	return all
}

func (n *nemesis) cut(from, to string, is bool) {
	n.w.net.shape(from, to, func(l *link) { l.cut = is })
}

// between shapes both directions of all links of m.
func (n *nemesis) between(m *machine, hosts []string, in, out bool, is bool) {
	for _, h := range hosts {
		if in {
			n.cut(h, m.ip, is)
		}
		if out {
			n.cut(m.ip, h, is)
		}
	}
}

func (n *nemesis) isolate(in, out bool) func() {
	m := n.machine()
	hosts := n.hosts(m)
	n.w.note("cut %s in=%v out=%v", m.name, in, out)
	n.between(m, hosts, in, out, true)
	return func() { n.between(m, hosts, in, out, false) }
}

var faults = []fault{
	{"cut-node", func(n *nemesis) func() { return n.isolate(true, true) }},
	{"cut-inbound", func(n *nemesis) func() { return n.isolate(true, false) }},
	{"cut-outbound", func(n *nemesis) func() { return n.isolate(false, true) }},
	{"cut-pair", func(n *nemesis) func() {
		a, b := n.pair()
		n.w.note("cut %s from %s", a.name, b.name)
		n.between(a, []string{b.ip}, true, true, true)
		return func() { n.between(a, []string{b.ip}, true, true, false) }
	}},
	{"cut-pair-one-way", func(n *nemesis) func() {
		a, b := n.pair()
		n.w.note("cut %s to %s", a.name, b.name)
		n.cut(a.ip, b.ip, true)
		return func() { n.cut(a.ip, b.ip, false) }
	}},
	{"cut-client", func(n *nemesis) func() {
		m, i := n.machine(), n.rng.IntN(len(n.w.clients))
		ip := n.w.clients[i].ip(i)
		n.w.note("cut %s from %s", m.name, n.w.clients[i].name)
		n.between(m, []string{ip}, true, true, true)
		return func() { n.between(m, []string{ip}, true, true, false) }
	}},
	{"cut-all", func(n *nemesis) func() {
		n.w.note("cut all nodes from each other")
		for _, a := range n.w.machines {
			for _, b := range n.w.machines {
				n.cut(a.ip, b.ip, a != b)
			}
		}
		return func() {
			for _, a := range n.w.machines {
				for _, b := range n.w.machines {
					n.cut(a.ip, b.ip, false)
				}
			}
		}
	}},
	{"crash", func(n *nemesis) func() { return n.crash(n.machine()) }},
	{"crash-two", func(n *nemesis) func() {
		a, b := n.pair()
		one, two := n.crash(a), n.crash(b)
		return func() { one(); two() }
	}},
	{"power-cut", func(n *nemesis) func() {
		var ends []func()
		for _, m := range n.w.machines {
			ends = append(ends, n.crash(m))
		}
		return func() {
			for _, f := range ends {
				f()
			}
		}
	}},
	{"slow", func(n *nemesis) func() {
		return n.shapeAll("slow", func(l *link) {
			l.delay, l.jitter = time.Duration(n.rng.Int64N(int64(60*time.Millisecond))), 20*time.Millisecond
		})
	}},
	{"lossy", func(n *nemesis) func() { return n.shapeAll("lossy", func(l *link) { l.loss = 0.2 * n.rng.Float64() }) }},
	{"twice", func(n *nemesis) func() {
		return n.shapeAll("duplicating", func(l *link) { l.dup, l.jitter = 0.3*n.rng.Float64(), 5*time.Millisecond })
	}},
	{"held", func(n *nemesis) func() {
		// Everything to and from one node waits, and then comes at once: as if
		// its process had been stopped, but for its timers.
		m := n.machine()
		n.w.note("hold what goes to and from %s", m.name)
		for _, h := range n.hosts(m) {
			n.w.net.shape(h, m.ip, func(l *link) { l.delay = 3 * time.Second })
			n.w.net.shape(m.ip, h, func(l *link) { l.delay = 3 * time.Second })
		}
		return func() {
			for _, h := range n.hosts(m) {
				n.w.net.shape(h, m.ip, func(l *link) { l.delay = 0 })
				n.w.net.shape(m.ip, h, func(l *link) { l.delay = 0 })
			}
		}
	}},
	{"disk-stall", func(n *nemesis) func() { return n.breakDisk(nil, true) }},
	{"disk-error", func(n *nemesis) func() { return n.breakDisk(errors.New("input/output error"), false) }},
	{"disk-sync-error", func(n *nemesis) func() {
		m := n.machine()
		n.w.note("disk of %s: syncs fail", m.name)
		m.disk.failSyncs(errors.New("input/output error"))
		return func() { m.disk.repair() }
	}},
	{"power-cut-in-sync", func(n *nemesis) func() {
		// Of an append of several sectors, which is written in any order.
		m := n.machine()
		n.w.note("the power of %s will fail in a sync", m.name)
		m.disk.doom(n.rng.IntN(4 * sectorBytes))
		return func() { m.disk.doom(0) }
	}},
	{"crash-next-segment", func(n *nemesis) func() {
		m := n.machine()
		n.w.note("%s will crash when its list of segments changes", m.name)
		m.disk.doomList()
		return func() {} // a list does not change often
	}},
	{"disk-full", func(n *nemesis) func() { return n.breakDisk(syscall.ENOSPC, false) }},
	{"bit-flip", func(n *nemesis) func() {
		m := n.machine()
		boot := n.crash(m)
		what := m.disk.rot()
		n.w.note("a bit flips on the disk of %s: %s", m.name, what)
		return boot
	}},
	{"drain", func(n *nemesis) func() {
		m := n.machine()
		n.w.note("drain %s", m.name)
		n.ask(func(ctx context.Context, a *baton.Admin) error {
			_, err := a.StartDrain(ctx, m.name, baton.DrainOptions{})
			return err
		})
		return func() {
			n.ask(func(ctx context.Context, a *baton.Admin) error { return a.Undrain(ctx, m.name) })
		}
	}},
	{"voter-moved", func(n *nemesis) func() {
		a, b := n.pair()
		n.w.note("the vote of %s goes to %s", a.name, b.name)
		n.ask(func(ctx context.Context, adm *baton.Admin) error {
			_, err := adm.Replace(ctx, baton.ReplaceRequest{Node: a.name, With: b.name})
			return err
		})
		return func() {}
	}},
	{"leader-moved", func(n *nemesis) func() {
		n.w.note("transfer leadership")
		n.ask(func(ctx context.Context, a *baton.Admin) error { return a.TransferLeader(ctx) })
		return func() {}
	}},
	{"fence", func(n *nemesis) func() {
		m := n.machine()
		n.w.note("fence %s", m.name)
		n.ask(func(ctx context.Context, a *baton.Admin) error { return a.Fence(ctx, m.name) })
		return func() {}
	}},
}

func (n *nemesis) ask(f func(context.Context, *baton.Admin) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	a := n.w.admin()
	if err := f(ctx, a); err != nil {
		n.w.note("refused: %v", err)
	}
	_ = a.Close()
}

func (n *nemesis) crash(m *machine) func() {
	told := n.rng.IntN(2) == 0
	n.w.note("crash %s, peers told: %v", m.name, told)
	m.stop(told)
	return func() {
		n.w.note("start %s", m.name)
		m.boot()
	}
}

func (n *nemesis) shapeAll(what string, change func(*link)) func() {
	n.w.note("%s links", what)
	var hosts []string
	for _, m := range n.w.machines {
		hosts = append(hosts, m.ip)
	}
	for i, c := range n.w.clients {
		hosts = append(hosts, c.ip(i))
	}
	each := func(change func(*link)) {
		for _, a := range hosts {
			for _, b := range hosts {
				if a != b {
					n.w.net.shape(a, b, change)
				}
			}
		}
	}
	each(change)
	return func() { each(func(l *link) { l.delay, l.jitter, l.loss, l.dup = 0, 0, 0, 0 }) }
}

func (n *nemesis) breakDisk(err error, stalled bool) func() {
	m := n.machine()
	n.w.note("disk of %s: error %v, stalled %v", m.name, err, stalled)
	m.disk.break_(err, stalled)
	return func() { m.disk.repair() }
}

// stormRounds is how many rounds of trouble a storm has at most.
const stormRounds = 5

// run makes trouble for d: storms of some rounds each, with calm between them where
// the grade has it.
func (n *nemesis) run(d time.Duration) {
	end := time.Now().Add(d)
	for time.Now().Before(end) && !n.w.violated() {
		n.w.setStorm(true)
		for range 1 + n.rng.IntN(stormRounds) {
			n.round()
		}
		if calm := n.w.grade.calm; calm > 0 {
			time.Sleep(time.Duration(n.rng.Int64N(int64(20 * time.Second)))) // clients go on
			n.w.restartFallen()
			n.w.setStorm(false)
			time.Sleep(min(time.Until(end), time.Duration(n.rng.Int64N(int64(2*calm)))))
		}
	}
	n.w.setStorm(true)
}

// round is some kinds of trouble at a time, and then none.
func (n *nemesis) round() {
	time.Sleep(time.Duration(n.rng.Int64N(int64(20 * time.Second))))
	var ends []func()
	for range 1 + n.rng.IntN(2) {
		f := n.faults[n.rng.IntN(len(n.faults))]
		n.w.count(f.name)
		ends = append(ends, f.start(n))
		time.Sleep(time.Duration(n.rng.Int64N(int64(2 * time.Second))))
	}
	time.Sleep(time.Duration(n.rng.Int64N(int64(20 * time.Second))))
	for _, f := range ends {
		f()
	}
	n.w.note("healed")
	n.w.restartFallen()
}

// restartFallen starts again those that stopped by themselves.
func (w *world) restartFallen() {
	for _, m := range w.machines {
		if fell, why := m.fallen(); fell {
			w.note("%s had stopped by itself: %v", m.name, why)
			m.end()
			switch rotten := m.disk.restore(); {
			case rotten:
				w.count("bit-flip-noticed")
			case damaged(why):
				w.violation("%s takes its disk for damaged, which it is not: %v", m.name, why)
			case blames(why) && m.disk.well():
				w.violation("%s takes its disk for bad, which it is not: %v", m.name, why)
			}
			m.boot()
		}
	}
}

// move moves sessions about, all the while.
func (w *world) move(ctx context.Context, ids []string, rng *rand.Rand, done *sync.WaitGroup) {
	done.Add(1)
	go func() {
		defer done.Done()
		a := w.admin()
		defer func() { _ = a.Close() }()
		for ctx.Err() == nil {
			if !w.pause(ctx.Done(), rng, 4*time.Second) {
				return
			}
			id, to := ids[rng.IntN(len(ids))], w.machines[rng.IntN(len(w.machines))].name
			c, cancel := context.WithTimeout(ctx, 15*time.Second)
			info, err := a.Migrate(c, baton.MigrateRequest{Session: id, To: to})
			cancel()
			w.mu.Lock()
			if err == nil {
				w.faults["moved"]++
			}
			w.mu.Unlock()
			w.note("move %s to %s: %v", id, to, errOr(err, info.State))
		}
	}()
}

// damaged reports that an error blames what the disk holds.
func damaged(err error) bool {
	return baton.CodeOf(err).String() == "SNAPSHOT_BAD" || err != nil &&
		(strings.Contains(err.Error(), "cannot be opened") || strings.Contains(err.Error(), "cannot be read"))
}

// blames reports that an error says that the disk failed.
func blames(err error) bool {
	return err != nil && strings.Contains(err.Error(), "the disk failed") && !strings.Contains(err.Error(), errPower.Error())
}

func errOr(err error, s string) string {
	if err != nil {
		return fmt.Sprint(err)
	}
	return s
}
