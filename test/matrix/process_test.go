package matrix

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
	"github.com/baton-cluster/baton/worker"
)

var (
	clusterID = []byte("cluster-of-tests")
	sealKey   = migrate.SealKey{Key: []byte("0123456789abcdef0123456789abcdef")}
)

// process is one start of one node: a replica, a worker and a director.
type process struct {
	w      *world
	id     string
	ctx    context.Context
	cancel context.CancelFunc
	wk     *worker.Worker
	dir    *migrate.Director
	fenced chan struct{}

	// w.mu guards these.
	dead     bool
	diskGone bool

	stMu    sync.RWMutex
	st      *store.Store
	applied atomic.Int64 // entries of the log

	leases leases

	evMu   sync.Mutex
	events [][]store.Event
	evWake chan struct{}

	// reign is this process's leadership as it knows of it: it may be the last
	// to hear that it is over. w.mu guards it.
	reign *reign
	// lateEnd ends a director's term that outlived its reign.
	lateEnd context.CancelFunc
}

func newProcess(w *world, id string) *process {
	p := &process{w: w, id: id, st: store.New(), fenced: make(chan struct{}, 1), evWake: make(chan struct{}, 1)}
	p.ctx, p.cancel = context.WithCancel(w.ctx)
	p.wk = worker.New(worker.Config{
		ID: id, Self: func() *wire.NodeInfo { return &wire.NodeInfo{Id: id, Name: id} },
		ClusterID: func() []byte { return clusterID }, Log: p, View: p.view, Peers: peers{p},
		App: app(), Clock: clock{p}, Rand: crand.Reader, Seals: seals{},
		Lease: p.leaseLeft,
		OnFenced: func() {
			select {
			case p.fenced <- struct{}{}:
			default:
			}
		},
	})
	p.dir = migrate.NewDirector(migrate.DirectorConfig{
		View: p.view, Propose: p.Propose, NowUS: p.nowUS, Clock: clock{p}, Rand: crand.Reader,
		ClusterID: func() []byte { return clusterID }, Self: id, Call: calls{p},
		Alive: func(other string) (alive, known bool) { return w.alive(id, other), true },
		Confirm: func(context.Context, migrate.Request, migrate.Plan) (migrate.Confirmation, error) {
			w.steps.reach("2")
			return migrate.Accept(), nil
		},
		Fencing: fencing{p},
	})
	return p
}

// app counts: "incr" adds one and answers the sum.
func app() *worker.Mux {
	m := worker.NewMux()
	m.Handle("incr", func(tx *worker.Tx, key []byte) ([]byte, error) {
		n, err := tx.Incr(string(key), 1)
		return fmt.Append(nil, n), err
	})
	m.HandleRead("get", func(v *worker.View, key []byte) ([]byte, error) {
		val, _ := v.Get(string(key))
		return val, nil
	})
	return m
}

// gate returns once the process runs; a dead one passes too, for it must end.
func (p *process) gate() {
	p.w.until(p.ctx, func() bool { return p.dead || !p.w.nodes[p.id].paused })
}

func (p *process) isDead() bool { return p.w.is(func() bool { return p.dead }) }

// clock is the process's: its timers do not run while it is paused.
type clock struct{ p *process }

func (c clock) Now() time.Duration { return c.p.w.now() }
func (c clock) Wall() time.Time    { return time.Now() }
func (c clock) AfterFunc(d time.Duration, f func()) seam.Timer {
	return time.AfterFunc(d, func() {
		c.p.gate()
		f()
	})
}

func (p *process) view(fn func(*store.Store)) {
	p.stMu.RLock()
	defer p.stMu.RUnlock()
	fn(p.st)
}

// nowUS is log time, as the leader reckons it.
func (p *process) nowUS() (us uint64) {
	p.w.mu.Lock()
	r := p.reign
	p.w.mu.Unlock()
	if r != nil {
		return r.stamp(p.w.now())
	}
	p.view(func(st *store.Store) { us = st.TimeUS() })
	return us
}

// apply brings the replica to entry n of the log and returns the results of the
// last one. Only one caller at a time: the log's lock, or the apply loop.
func (p *process) apply(entries [][]byte) (last []*wire.Result) {
	p.stMu.Lock()
	var events []store.Event
	for _, data := range entries[min(int(p.applied.Load()), len(entries)):] {
		e := &wire.Entry{}
		if err := proto.Unmarshal(data, e); err != nil {
			panic(err)
		}
		res, ev := p.st.Apply(uint64(p.applied.Add(1)), e)
		last, events = res, append(events, ev...)
	}
	p.stMu.Unlock()
	if len(events) > 0 {
		p.evMu.Lock()
		p.events = append(p.events, events)
		p.evMu.Unlock()
		select {
		case p.evWake <- struct{}{}:
		default:
		}
	}
	return last
}

// eventLoop tells worker and director what was applied, in order.
func (p *process) eventLoop() {
	for {
		select {
		case <-p.evWake:
		case <-p.ctx.Done():
			return
		}
		p.gate()
		p.evMu.Lock()
		batch := p.events
		p.events = nil
		p.evMu.Unlock()
		for _, ev := range batch {
			p.wk.Observe(ev)
			p.dir.Nudge()
		}
	}
}

// applyLoop follows the log as a follower does: a while after the leader.
func (p *process) applyLoop() {
	for {
		ok := p.w.until(p.ctx, func() bool {
			n := p.w.nodes[p.id]
			return p.w.log.leader != "" && p.w.open(p.w.log.leader, p.id) && p.w.open(p.id, p.w.log.leader) &&
				!n.paused && !n.stalled && p.w.log.length > int(p.applied.Load())
		})
		if !ok || !sleep(p.ctx, p.w.followLag(p.id)) {
			return
		}
		p.gate()
		p.w.log.follow(p)
	}
}

// followLag is how late a follower hears of a commit: the next append or
// heartbeat tells it. It differs from node to node.
func (w *world) followLag(id string) time.Duration {
	return map[string]time.Duration{"n1": 3, "n2": 5, "n3": 11}[id] * time.Millisecond
}

// registerLoop gets the worker its incarnations, as a node does.
func (p *process) registerLoop() {
	if !p.w.until(p.ctx, func() bool { return p.w.log.leader != "" && p.w.log.ready }) {
		return
	}
	var last uint64
	p.view(func(st *store.Store) { last = st.Worker(p.id).GetIncarnation() })
	for {
		res, err := p.register(last)
		if err != nil {
			return
		}
		if res.GetCode() != wire.Code_OK {
			last = res.GetCurrent()
			continue
		}
		last = res.GetEpoch()
		p.wk.SetIncarnation(last)
		select {
		case <-p.fenced:
		case <-p.ctx.Done():
			return
		}
		p.gate()
	}
}

func (p *process) register(predecessor uint64) (*wire.Result, error) {
	return p.proposeWait(&wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{
		Id: p.id, Name: p.id, Nonce: fresh(16), Predecessor: predecessor,
		Endpoint: &wire.Endpoint{Host: p.id, UserPort: 1, MgmtPort: 2},
		Place:    &wire.Place{Boot: "boot", Inode: 7, Local: true},
	}}})
}

func (p *process) proposeWait(c *wire.Command) (*wire.Result, error) {
	type answer struct {
		res []*wire.Result
		err error
	}
	ch := make(chan answer, 1)
	p.Propose([]*wire.Command{c}, func(res []*wire.Result, err error) { ch <- answer{res, err} })
	a := <-ch
	if a.err != nil {
		return nil, a.err
	}
	return a.res[0], nil
}

func fresh(n int) []byte {
	b := make([]byte, n)
	_, _ = crand.Read(b)
	return b
}

// call brings a request to another node's process and its answer back. A call
// that is under way when the other dies fails; one that is held up by a cut comes
// late, and is run all the same.
func (p *process) call(ctx context.Context, to, before, after string, do func(context.Context, *process) error) error {
	if to == p.id {
		return p.serveCall(ctx, before, after, do)
	}
	var q *process
	p.w.is(func() bool { q = p.w.nodes[to].proc; return true })
	if q == nil {
		sleep(ctx, hop)
		return errors.New("connection refused")
	}
	limit := 15 * time.Second
	if at, ok := ctx.Deadline(); ok {
		limit = time.Until(at)
	}
	answer := make(chan error, 1)
	copies := 1
	if p.w.doubled(p.id, to) {
		copies = 2
	}
	for n := range copies {
		p.w.wg.Go(func() {
			if n > 0 && !sleep(q.ctx, 7*hop) {
				return
			}
			if !p.w.carry(q.ctx, p.id, to) {
				return
			}
			q.gate()
			qctx, cancel := context.WithTimeout(q.ctx, limit)
			defer cancel()
			defer context.AfterFunc(ctx, func() {
				if p.w.is(func() bool { return p.w.open(p.id, to) }) {
					cancel()
				}
			})()
			err := q.serveCall(qctx, before, after, do)
			q.gate()
			if n == 0 && p.w.carry(q.ctx, to, p.id) {
				answer <- err
			}
		})
	}
	select {
	case err := <-answer:
		p.gate()
		return err
	case <-q.ctx.Done():
		p.gate()
		return errors.New("connection reset")
	case <-ctx.Done():
		p.gate()
		return ctx.Err()
	case <-p.ctx.Done():
		return unavailable("the node stops")
	}
}

// serveCall runs a call at the process that serves it, with the steps around it.
func (p *process) serveCall(ctx context.Context, before, after string, do func(context.Context, *process) error) error {
	p.w.steps.reach(before)
	p.gate()
	if p.isDead() {
		return unavailable("the node stops")
	}
	err := do(ctx, p)
	if err == nil {
		p.w.steps.reach(after)
	}
	p.gate()
	return err
}

// calls are a director's calls to workers.
type calls struct{ p *process }

func (c calls) Prepare(ctx context.Context, to *wire.WorkerRow, req *wire.PrepareReq) error {
	return c.p.call(ctx, to.GetId(), "3-told", "", func(_ context.Context, q *process) error {
		return q.wk.Prepare(clone(req))
	})
}

func (c calls) Invite(ctx context.Context, to *wire.WorkerRow, req *wire.InviteReq) (*wire.InviteResp, error) {
	return answered(func(got *answerOf[*wire.InviteResp]) error {
		return c.p.call(ctx, to.GetId(), "4", "", func(_ context.Context, q *process) error {
			resp, err := q.wk.Invite(clone(req))
			return got.set(resp, err)
		})
	})
}

func (c calls) AwaitWarm(ctx context.Context, to *wire.WorkerRow, req *wire.WarmReq) (*wire.WarmResp, error) {
	return answered(func(got *answerOf[*wire.WarmResp]) error {
		return c.p.call(ctx, to.GetId(), "", "4-warm", func(ctx context.Context, q *process) error {
			resp, err := q.wk.AwaitWarm(ctx, clone(req))
			return got.set(resp, err)
		})
	})
}

func (c calls) Handover(ctx context.Context, to *wire.WorkerRow, req *wire.HandoverReq) (*wire.HandoverResp, error) {
	return answered(func(got *answerOf[*wire.HandoverResp]) error {
		return c.p.call(ctx, to.GetId(), "5", "", func(ctx context.Context, q *process) error {
			resp, err := q.wk.Handover(ctx, clone(req))
			return got.set(resp, err)
		})
	})
}

// Confirm accepts: step 2 is where the hook is asked.
func (c calls) Confirm(ctx context.Context, to *wire.WorkerRow, req *wire.ConfirmReq) (*wire.ConfirmResp, error) {
	return answered(func(got *answerOf[*wire.ConfirmResp]) error {
		return c.p.call(ctx, to.GetId(), "", "", func(context.Context, *process) error {
			return got.set(&wire.ConfirmResp{Answers: make([]*wire.MoveAnswer, len(req.GetOffers()))}, nil)
		})
	})
}

// Order names no session.
func (c calls) Order(ctx context.Context, to *wire.WorkerRow, req *wire.OrderReq) (*wire.OrderResp, error) {
	return answered(func(got *answerOf[*wire.OrderResp]) error {
		return c.p.call(ctx, to.GetId(), "", "", func(context.Context, *process) error {
			return got.set(&wire.OrderResp{}, nil)
		})
	})
}

// peers are a worker's calls to other nodes.
type peers struct{ p *process }

func (c peers) Transfer(ctx context.Context, addr string, req *wire.TransferReq) (*wire.TransferResp, error) {
	c.p.w.steps.reach("6")
	c.p.gate()
	return answered(func(got *answerOf[*wire.TransferResp]) error {
		return c.p.call(ctx, addr[:len("n1")], "6-arrived", "8", func(ctx context.Context, q *process) error {
			resp, err := q.wk.Transfer(ctx, clone(req))
			return got.set(resp, err)
		})
	})
}

func (c peers) Assign(ctx context.Context, session string) (*wire.Location, error) {
	leader := ""
	c.p.w.is(func() bool { leader = c.p.w.log.knownTo(c.p); return true })
	if leader == "" {
		return nil, unavailable("the cluster has no leader just now")
	}
	return answered(func(got *answerOf[*wire.Location]) error {
		return c.p.call(ctx, leader, "", "", func(ctx context.Context, q *process) error {
			loc, err := q.dir.AssignNow(ctx, session)
			return got.set(loc, err)
		})
	})
}

func (c peers) Relay(worker.Link, *wire.ClientFrame, *wire.NodeInfo) error {
	return unavailable("relays are not part of this world")
}

// answerOf holds the answer of a call, of which two copies may be under way.
type answerOf[T any] struct {
	mu   sync.Mutex
	resp T
}

func (a *answerOf[T]) set(resp T, err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err == nil {
		a.resp = resp
	}
	return err
}

func answered[T any](call func(*answerOf[T]) error) (T, error) {
	var got answerOf[T]
	err := call(&got)
	got.mu.Lock()
	defer got.mu.Unlock()
	if err != nil {
		var none T
		return none, err
	}
	return got.resp, nil
}

func clone[M proto.Message](m M) M { return proto.Clone(m).(M) }

// seals: one key for all, as rotations are not part of this world.
type seals struct{}

func (seals) Newest() migrate.SealKey                      { return sealKey }
func (seals) Of(generation uint64) (migrate.SealKey, bool) { return sealKey, generation == 0 }
