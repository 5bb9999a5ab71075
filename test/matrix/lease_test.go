package matrix

import (
	"context"
	"sync"
	"time"

	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// leases are both sides of a process's leases: its worker's, and its server's
// promises to all workers.
type leases struct {
	mu     sync.Mutex
	holder lease.Holder
	server *lease.Server
}

// voterConfig: the voters are the same three throughout.
const voterConfig = 0

// leaseLoop renews the worker's lease with every server.
func (p *process) leaseLoop() {
	const t = lease.TDefault
	for {
		p.gate()
		p.leases.mu.Lock()
		now := p.w.now()
		if n := p.wk.Incarnation(); n != p.leases.holder.Incarnation() {
			p.leases.holder.Begin(n, now)
		}
		p.leases.holder.SetVoters(voterConfig, nodeNames)
		renewals := p.leases.holder.Renew(now, t)
		until, ok := p.leases.holder.Until()
		p.leases.mu.Unlock()
		for _, r := range renewals {
			p.w.wg.Go(func() { p.renew(r, t) })
		}
		wait := t / lease.RenewalsPerLease
		if !ok || now >= until {
			wait /= 8
		}
		if !sleep(p.ctx, wait) {
			return
		}
	}
}

func (p *process) renew(r lease.Renewal, t time.Duration) {
	ctx, cancel := context.WithTimeout(p.ctx, t)
	defer cancel()
	grant, err := answered(func(got *answerOf[lease.Grant]) error {
		return p.call(ctx, r.Server, "", "", func(_ context.Context, q *process) error {
			return got.set(q.grant(p.id, r), nil)
		})
	})
	if err != nil {
		return
	}
	p.leases.mu.Lock()
	over := p.leases.holder.Receive(grant)
	p.leases.mu.Unlock()
	if over && p.wk.Fenced(r.Incarnation) {
		select {
		case p.fenced <- struct{}{}:
		default:
		}
	}
}

func (p *process) grant(worker string, r lease.Renewal) lease.Grant {
	leads := p.w.is(func() bool { return p.w.log.leader == p.id })
	p.leases.mu.Lock()
	defer p.leases.mu.Unlock()
	now := p.w.now()
	facts := lease.Facts{CaughtUp: true}
	p.view(func(st *store.Store) {
		row := st.Worker(worker)
		fenced := row.GetState() == wire.WorkerState_WORKER_STATE_FENCED
		facts.Current = row.GetIncarnation() == r.Incarnation && !fenced
		facts.Past = row.GetIncarnation() > r.Incarnation || row.GetIncarnation() == r.Incarnation && fenced
	})
	return lease.Grant{Server: p.id, Nonce: r.Nonce, T: r.T, Code: p.leases.server.Grant(now, r, facts), Leads: leads}
}

// leaseLeft is the worker's Lease.
func (p *process) leaseLeft(incarnation uint64) (time.Duration, bool) {
	p.leases.mu.Lock()
	defer p.leases.mu.Unlock()
	return p.leases.holder.Left(incarnation, p.w.now())
}

// promise answers a poll. A withdrawal is on the node's disk before it is said.
func (p *process) promise(a lease.Ask) lease.Promise {
	p.leases.mu.Lock()
	defer p.leases.mu.Unlock()
	if !a.Withdraw {
		return p.leases.server.Promise(p.w.now(), a.Incarnation)
	}
	got := p.leases.server.Withdraw(p.w.now(), a.Incarnation)
	list := p.leases.server.Withdrawals()
	p.w.change(func() { p.w.nodes[p.id].withdrawn = list })
	return got
}

// fencing is the director's.
type fencing struct{ p *process }

func (fencing) MayFence() (config uint64, voters []string, may bool) {
	return voterConfig, nodeNames, true
}

func (f fencing) Ask(ctx context.Context, a lease.Ask) (lease.Promise, error) {
	return answered(func(got *answerOf[lease.Promise]) error {
		return f.p.call(ctx, a.Server, "", "", func(_ context.Context, q *process) error {
			return got.set(q.promise(a), nil)
		})
	})
}

func (f fencing) Own(incarnation uint64) lease.Promise {
	return f.p.promise(lease.Ask{Incarnation: incarnation})
}

func (f fencing) Refused(_ context.Context, w *wire.WorkerRow) bool {
	return f.p.w.is(func() bool {
		id := w.GetId()
		return f.p.w.nodes[id].proc == nil && f.p.w.open(f.p.id, id) && f.p.w.open(id, f.p.id)
	})
}
