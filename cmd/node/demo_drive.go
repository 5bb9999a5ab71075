package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"syscall"
	"time"

	"github.com/baton-cluster/baton"
)

const (
	// settleMax is how long calls may take to be answered once the load ends, and
	// settleFailed how long they get once the demo has failed.
	settleMax    = 15 * time.Second
	settleFailed = 3 * time.Second
	// serveWithin is how long the sessions of a dead node may be without service:
	// the promise is 5 s, a busy two-core machine gets more before the demo calls
	// it a fault; the time that it took is reported.
	serveWithin = 15 * time.Second
	// healthyWithin is how long a restarted node may take to be whole again.
	healthyWithin = 20 * time.Second
	pollEvery     = 20 * time.Millisecond
	// paceFor is how long lanes hurry, or hush, before a fault.
	paceFor = 300 * time.Millisecond
	// pauseLeaderFor is long enough for the others to elect a leader, and too
	// short for them to give up the paused worker.
	pauseLeaderFor = 1200 * time.Millisecond
	// pausesEach is how often leaders are paused in a row. A request reaches the
	// log twice only if the leader is lost between the commit and the answer:
	// within milliseconds.
	pausesEach = 4
	// againWithin is what one more fault may take of the time that is left.
	againWithin = 12 * time.Second
	// observersMax bounds the clients that wait at a stopped node.
	observersMax = 6
)

// drive is the demo's story.
func (d *demo) drive(ctx context.Context) {
	begun := time.Now()
	d.rest(ctx, min(6*time.Second, d.duration/6))
	killFollower := func(ctx context.Context) { d.killNode(ctx, false) }
	killLeader := func(ctx context.Context) { d.killNode(ctx, true) }
	story := []func(context.Context){d.drain}
	if d.kill {
		story = append(story, killFollower, killLeader, d.pauseLeaders, d.stall)
	}
	if d.rolling {
		story = append(story, d.rollAll)
	}
	for _, phase := range story {
		if d.over(ctx) {
			break
		}
		phase(ctx)
		d.rest(ctx, time.Second)
	}
	again := []func(context.Context){killLeader, d.pauseLeaders, d.stall}
	for i := 0; d.kill && !d.over(ctx) && time.Since(begun)+againWithin < d.duration; i++ {
		again[i%len(again)](ctx)
		d.rest(ctx, time.Second)
	}
	d.topUp(ctx, begun)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		d.fault("out of time: the phases took longer than %s", demoMax-judgeMax)
	}
}

// over reports whether to stop breaking things: the time is up, or something
// has gone wrong already that the verdict will tell of.
func (d *demo) over(ctx context.Context) bool {
	if n := d.ledger.failedOps(); n > 0 && len(d.faults) == 0 {
		d.fault("%d calls failed", n)
	}
	return ctx.Err() != nil || len(d.faults) > 0
}

// rest lets the load and the moves go on for a while.
func (d *demo) rest(ctx context.Context, dur time.Duration) {
	t := time.NewTimer(dur)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// topUp goes on until the demanded duration and numbers are reached.
func (d *demo) topUp(ctx context.Context, begun time.Time) {
	said := false
	for !d.over(ctx) {
		enough := d.mover.done() >= d.minPivots+d.minPivots/10 && d.ledger.ackedOps() >= d.minAcked+d.minAcked/10
		if enough && time.Since(begun) >= d.duration {
			return
		}
		if !said {
			d.show.line("load", "healed; more moves under load")
			said = true
		}
		d.rest(ctx, 10*pollEvery)
	}
}

// drain moves everything off one node, and lets it have sessions again.
func (d *demo) drain(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	n := d.fleet.nodes[d.rng.IntN(fleetSize)]
	d.show.line("drain", "moving every session off %s", n.name)
	d.mover.avoid(n.name, true)
	defer d.mover.avoid(n.name, false)
	var report baton.DrainReport
	ctx, cancel := context.WithTimeout(ctx, healthyWithin)
	defer cancel()
	err := d.fleet.ask(ctx, func(ctx context.Context, a *baton.Admin) (err error) {
		report, err = a.Drain(ctx, n.name, baton.DrainOptions{}, func(baton.DrainReport) {})
		return err
	})
	if err != nil {
		d.fault("drain of %s: %v", n.name, err)
		return
	}
	if report.Lost != 0 || report.Duplicated != 0 || report.Remaining != 0 {
		d.fault("drain of %s: %d lost, %d duplicated, %d remaining", n.name, report.Lost, report.Duplicated, report.Remaining)
	}
	d.show.line("drain", "%s is empty: %d moved, pause %s p50, %s at most", n.name, report.Moved, micros(report.PauseUS.P50), micros(report.PauseUS.Max))
	d.drains++
	if err := d.retry(ctx, func(ctx context.Context, a *baton.Admin) error { return a.Undrain(ctx, n.name) }); err != nil {
		d.fault("undrain of %s: %v", n.name, err)
	}
}

// retry asks until there is an answer: a leader may be missing just now.
func (d *demo) retry(ctx context.Context, fn func(context.Context, *baton.Admin) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, askWithin)
		err := d.fleet.ask(try, fn)
		cancel()
		if err == nil || ctx.Err() != nil || exitCode(err) != exitNoCluster {
			return err
		}
		d.rest(ctx, healthEvery)
	}
}

// victim picks a node that owns sessions: the leader, or one that is not.
func (d *demo) victim(ctx context.Context, leader bool) (*fleetNode, error) {
	var last error
	for wait := time.NewTimer(serveWithin); ; d.rest(ctx, pollEvery) {
		st, err := d.fleet.status(ctx)
		if err == nil {
			if n := d.pick(st, leader); n != nil {
				return n, nil
			}
			last = fmt.Errorf("no node with sessions to break (leader %q)", st.Leader)
		} else {
			last = err
		}
		select {
		case <-ctx.Done():
			return nil, last
		case <-wait.C:
			return nil, last
		default:
		}
	}
}

func (d *demo) pick(st baton.Status, leader bool) *fleetNode {
	if st.Leader == "" {
		return nil
	}
	nodes := append([]*fleetNode(nil), d.fleet.nodes...)
	sort.Slice(nodes, func(i, j int) bool { return len(d.ledger.owned(nodes[i].name)) > len(d.ledger.owned(nodes[j].name)) })
	for _, n := range nodes {
		if (n.name == st.Leader) == leader && len(d.ledger.owned(n.name)) > 0 {
			return n
		}
	}
	return nil
}

// outage notes that a node goes away now. Call it right before.
func (d *demo) outage(n *fleetNode) Outage {
	o := Outage{Node: n.name, Owned: d.ledger.owned(n.name), AtUS: d.ledger.now()}
	d.outages = append(d.outages, o)
	return o
}

// served waits until all sessions of an outage answer under a later epoch.
func (d *demo) served(ctx context.Context, o Outage) bool {
	ctx, cancel := context.WithTimeout(ctx, serveWithin)
	defer cancel()
	for d.ledger.movedOn(o.Owned) < len(o.Owned) {
		if ctx.Err() != nil {
			d.fault("%d of the %d sessions of %s were not served again within %s", len(o.Owned)-d.ledger.movedOn(o.Owned), len(o.Owned), o.Node, serveWithin)
			return false
		}
		d.rest(ctx, pollEvery)
	}
	return true
}

// killNode kills a node that owns sessions with SIGKILL, in the middle of as
// much as the clients can have outstanding, and starts it again.
func (d *demo) killNode(ctx context.Context, leader bool) {
	if ctx.Err() != nil {
		return
	}
	n, err := d.victim(ctx, leader)
	if err != nil {
		d.fault("nobody to kill: %v", err)
		return
	}
	what := "a follower"
	if leader {
		what = "the leader"
	}
	d.recorder.now(ctx)
	d.mover.avoid(n.name, true)
	defer d.mover.avoid(n.name, false)
	d.load.pace.Store(hurry)
	d.rest(ctx, paceFor)
	d.fleet.setAway(n.name, true)
	o := d.outage(n)
	n.proc.kill()
	d.load.pace.Store(steady)
	d.kills++
	d.show.line("kill -9", "%s, %s and owner of %d sessions", n.name, what, len(o.Owned))
	if d.served(ctx, o) {
		d.show.line("kill -9", "all %d sessions answer again after %s", len(o.Owned), micros(d.ledger.now()-o.AtUS))
	}
	d.restart(ctx, n)
}

// restart starts a node's process again and waits until the cluster is whole.
func (d *demo) restart(ctx context.Context, n *fleetNode) bool {
	defer d.fleet.setAway(n.name, false)
	if err := d.fleet.startNode(n); err != nil {
		d.fault("%v", err)
		return false
	}
	if err := d.fleet.waitHealthy(ctx, healthyWithin); err != nil {
		if ctx.Err() == nil {
			d.fault("after the restart of %s: %v", n.name, err)
		}
		return false
	}
	d.show.line("restart", "%s is back, the cluster is healthy", n.name)
	return true
}

// stall stops a node that owns sessions with SIGSTOP until others have taken
// them over, and lets it go on: it must find out before it answers anybody.
// Clients that only know the stopped node wait there with reads that were sent
// after the take-over.
func (d *demo) stall(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	n, err := d.victim(ctx, false)
	if err != nil {
		d.fault("nobody to stop: %v", err)
		return
	}
	d.mover.avoid(n.name, true)
	defer d.mover.avoid(n.name, false)
	watch := d.observe(ctx, n)
	defer watch.close()
	d.recorder.now(ctx)
	pace := hush
	if d.stalls%2 == 1 {
		pace = hurry
	}
	d.load.pace.Store(pace)
	d.rest(ctx, paceFor)
	d.fleet.setAway(n.name, true)
	defer d.fleet.setAway(n.name, false)
	o := d.outage(n)
	err = n.proc.signal(syscall.SIGSTOP)
	d.load.pace.Store(steady)
	if err != nil {
		d.fault("stopping %s: %v", n.name, err)
		return
	}
	d.show.line("stop", "%s with %d sessions; %d clients know no other node", n.name, len(o.Owned), len(watch.sessions))
	served := d.served(ctx, o)
	watch.ask(ctx)
	if err := n.proc.signal(syscall.SIGCONT); err != nil {
		d.fault("waking %s: %v", n.name, err)
		return
	}
	if served {
		d.stalls++
		d.show.line("continue", "%s woke up %s later; its sessions are others' by now", n.name, micros(d.ledger.now()-o.AtUS))
	}
	if !watch.wait(serveWithin) {
		d.fault("reads that waited at %s got no answer within %s of its waking up", n.name, serveWithin)
	}
	if err := d.fleet.waitHealthy(ctx, healthyWithin); err != nil && ctx.Err() == nil {
		d.fault("after %s woke up: %v", n.name, err)
	}
}

// pauseLeaders pauses one leader after the other.
func (d *demo) pauseLeaders(ctx context.Context) {
	before := d.pauses
	for range pausesEach {
		if !d.over(ctx) {
			d.pauseLeader(ctx)
		}
	}
	d.show.line("pause", "%d leaders paused in turn, for %s each, and another one elected", d.pauses-before, pauseLeaderFor)
}

// pauseLeader stops the leader, in the middle of as much as the clients can have
// outstanding, until the others have another one. What it had in its log may be
// committed or not: everybody who waits has to ask again.
func (d *demo) pauseLeader(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	n, err := d.victim(ctx, true)
	if err != nil {
		d.fault("no leader to pause: %v", err)
		return
	}
	d.load.pace.Store(hurry)
	d.rest(ctx, paceFor)
	d.fleet.setAway(n.name, true)
	defer d.fleet.setAway(n.name, false)
	err = n.proc.signal(syscall.SIGSTOP)
	d.load.pace.Store(steady)
	if err != nil {
		d.fault("pausing %s: %v", n.name, err)
		return
	}
	d.rest(ctx, pauseLeaderFor)
	if err := n.proc.signal(syscall.SIGCONT); err != nil {
		d.fault("waking %s: %v", n.name, err)
		return
	}
	d.pauses++
	if err := d.fleet.waitHealthy(ctx, healthyWithin); err != nil && ctx.Err() == nil {
		d.fault("after %s was paused: %v", n.name, err)
	}
}

// rollAll restarts all nodes in turn, as a deploy does.
func (d *demo) rollAll(ctx context.Context) {
	for _, i := range d.rng.Perm(fleetSize) {
		if d.over(ctx) {
			return
		}
		n := d.fleet.nodes[i]
		if n.proc == nil {
			d.fault("%s did not come back before, so it cannot be restarted", n.name)
			continue
		}
		d.recorder.now(ctx)
		d.mover.avoid(n.name, true)
		d.show.line("roll", "SIGTERM to %s, with %d sessions", n.name, len(d.ledger.owned(n.name)))
		d.fleet.setAway(n.name, true)
		began := time.Now()
		err := n.proc.terminate(terminateWithin)
		if err != nil {
			d.fault("%s did not stop in order: %v: %s", n.name, err, n.proc.tail(2))
		}
		d.show.line("roll", "%s stopped %s later", n.name, time.Since(began).Round(time.Millisecond))
		back := d.restart(ctx, n)
		d.mover.avoid(n.name, false)
		if err == nil && back {
			d.rolled++
		}
	}
}
