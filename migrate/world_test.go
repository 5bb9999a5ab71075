package migrate

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/baton-cluster/baton/lease"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// world is a cluster without network: one store that is the log's applied state,
// and workers that do as they are told, or as the test wants. It lives in a
// synctest bubble.
type world struct {
	t     *testing.T
	start time.Time
	wg    sync.WaitGroup

	mu      sync.Mutex
	st      *store.Store
	index   uint64
	batches [][]*wire.Command // as proposed
	epochs  map[string]uint64
	nudge   []func()
	refuse  func(*wire.Command) error // commands that cannot be proposed

	gossipMu sync.Mutex
	gossip   map[string]bool // alive; none: unknown to gossip
	// silent is since when a worker has not renewed; those not in it do.
	silent    map[string]time.Duration
	withdrawn map[uint64]bool
	refuses   map[string]bool // no process listens at its port
	mayFence  bool

	// on, by call, runs before (…) and after (…+) the worker does its part.
	on map[string]func(ctx context.Context) error
	// say is what workers answer to offers; nil: they accept.
	say func(worker string, o *wire.MoveOffer) Confirmation
	// order is what a drained worker says of its sessions; nil: none shares a
	// connection.
	order func(worker string, after uint64) (sessions []string, last uint64)
	// pause is how long a handover pauses its session; nil: 2.1 ms.
	pause func(underway int) time.Duration
	// handing counts the handovers under way.
	handing int
}

const logLatency = 2 * time.Millisecond

func newWorld(t *testing.T, workers ...string) *world {
	w := &world{
		t: t, start: time.Now(), st: store.New(), epochs: map[string]uint64{},
		gossip: map[string]bool{}, silent: map[string]time.Duration{}, withdrawn: map[uint64]bool{},
		refuses: map[string]bool{}, mayFence: true, on: map[string]func(context.Context) error{},
	}
	t.Cleanup(w.wg.Wait) // runs after the directors' terms, still in the bubble
	w.must(&wire.Command{Kind: &wire.Command_InitCluster{InitCluster: &wire.InitCluster{ClusterId: testCluster, ByteBudget: 1 << 40}}})
	for _, id := range workers {
		w.register(id)
		w.hear(id, true)
	}
	return w
}

// hear makes gossip call a worker alive or dead, and one that it calls dead be
// silent.
func (w *world) hear(id string, alive bool) {
	w.gossipMu.Lock()
	w.gossip[id] = alive
	w.gossipMu.Unlock()
	w.renews(id, alive)
}

// renews makes a worker renew its lease, or stop to.
func (w *world) renews(id string, does bool) {
	w.gossipMu.Lock()
	defer w.gossipMu.Unlock()
	if _, silent := w.silent[id]; does {
		delete(w.silent, id)
	} else if !silent {
		w.silent[id] = w.Now()
	}
}

// portRefuses makes a worker's management port refuse connections.
func (w *world) portRefuses(id string) {
	w.gossipMu.Lock()
	defer w.gossipMu.Unlock()
	w.refuses[id] = true
}

// votersChange keeps fences from being appended.
func (w *world) votersChange() {
	w.gossipMu.Lock()
	defer w.gossipMu.Unlock()
	w.mayFence = false
}

// withdraw has a server agreed to the fence of a worker.
func (w *world) withdraw(id string) {
	incarnation := w.worker(id).GetIncarnation()
	w.gossipMu.Lock()
	defer w.gossipMu.Unlock()
	w.withdrawn[incarnation] = true
}

func (w *world) withdrawals() int {
	w.gossipMu.Lock()
	defer w.gossipMu.Unlock()
	return len(w.withdrawn)
}

// promises are those of three servers, which agree in all.
type promises struct{ w *world }

func (p promises) MayFence() (config uint64, voters []string, may bool) {
	p.w.gossipMu.Lock()
	defer p.w.gossipMu.Unlock()
	return 0, []string{"v1", "v2", "v3"}, p.w.mayFence
}

func (p promises) Own(incarnation uint64) lease.Promise {
	got, _ := p.Ask(context.Background(), lease.Ask{Incarnation: incarnation})
	return got
}

func (p promises) Ask(_ context.Context, a lease.Ask) (lease.Promise, error) {
	id := ""
	p.w.view(func(s *store.Store) {
		for _, r := range s.Workers() {
			if r.GetIncarnation() == a.Incarnation {
				id = r.GetId()
			}
		}
	})
	p.w.gossipMu.Lock()
	defer p.w.gossipMu.Unlock()
	got := lease.Promise{Left: lease.TDefault, Withdrawn: p.w.withdrawn[a.Incarnation]}
	if since, silent := p.w.silent[id]; silent {
		got.Left = max(since+lease.TDefault-p.w.Now(), 0)
	}
	if a.Withdraw && got.Left == 0 {
		got.Withdrawn, p.w.withdrawn[a.Incarnation] = true, true
	}
	return got, nil
}

func (p promises) Refused(_ context.Context, row *wire.WorkerRow) bool {
	p.w.gossipMu.Lock()
	defer p.w.gossipMu.Unlock()
	return p.w.refuses[row.GetId()]
}

func (w *world) alive(id string) (alive, known bool) {
	w.gossipMu.Lock()
	defer w.gossipMu.Unlock()
	alive, known = w.gossip[id]
	return alive, known
}

func (w *world) register(id string) {
	w.t.Helper()
	w.must(&wire.Command{Kind: &wire.Command_RegisterWorker{RegisterWorker: &wire.RegisterWorker{
		Id: id, Name: "name-" + id, Nonce: fmt.Append(nil, id, w.index), Predecessor: w.worker(id).GetIncarnation(),
		Endpoint: &wire.Endpoint{Host: id, UserPort: 1, MgmtPort: 2},
		Place:    &wire.Place{Boot: "boot", Inode: 7, Local: true},
	}}})
}

func (w *world) worker(id string) (row *wire.WorkerRow) {
	w.view(func(s *store.Store) { row = s.Worker(id) })
	return row
}

func (w *world) owner(id string) *wire.Owner {
	return &wire.Owner{Worker: id, Incarnation: w.worker(id).GetIncarnation()}
}

// clock is the bubble's.
func (w *world) Now() time.Duration { return time.Since(w.start) }
func (w *world) Wall() time.Time    { return time.Now() }
func (w *world) AfterFunc(d time.Duration, f func()) seam.Timer {
	return time.AfterFunc(d, f)
}
func (w *world) nowUS() uint64 { return uint64(w.Now() / time.Microsecond) }

// logTimeUS looks at the state, as the product's does: within view it would hang.
func (w *world) logTimeUS() (us uint64) {
	w.view(func(*store.Store) { us = w.nowUS() })
	return us
}

func (w *world) view(fn func(*store.Store)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn(w.st)
}

func (w *world) apply(cmds []*wire.Command) []*wire.Result {
	w.mu.Lock()
	w.index++
	res, events := w.st.Apply(w.index, &wire.Entry{TimeUs: w.nowUS(), Commands: cmds})
	for i, c := range cmds {
		w.note(c, res[i])
	}
	nudge := w.nudge
	w.mu.Unlock()
	if len(events) > 0 {
		for _, f := range nudge {
			f()
		}
	}
	return res
}

// note checks what must hold whatever the commands: epochs rise.
func (w *world) note(c *wire.Command, res *wire.Result) {
	if row := res.GetRow(); row != nil && res.GetCode() == wire.Code_OK && !res.GetDuplicate() {
		if row.GetEpoch() < w.epochs[row.GetId()] {
			w.t.Errorf("session %s fell from epoch %d to %d", row.GetId(), w.epochs[row.GetId()], row.GetEpoch())
		}
		w.epochs[row.GetId()] = row.GetEpoch()
	}
}

func (w *world) must(cmds ...*wire.Command) []*wire.Result {
	w.t.Helper()
	res := w.apply(cmds)
	for i := range res {
		if res[i].GetCode() != wire.Code_OK {
			w.t.Fatalf("%v: %v", cmds[i], res[i].GetCode())
		}
	}
	return res
}

// propose is the cluster's: it takes a while, and answers from elsewhere.
func (w *world) propose(cmds []*wire.Command, done func([]*wire.Result, error)) {
	w.mu.Lock()
	w.batches = append(w.batches, cmds)
	refuse := w.refuse
	w.mu.Unlock()
	w.wg.Go(func() {
		if refuse != nil {
			for _, c := range cmds {
				if err := refuse(c); err != nil {
					done(nil, err)
					return
				}
			}
		}
		time.Sleep(logLatency)
		done(w.apply(cmds), nil)
	})
}

func (w *world) proposeWait(c *wire.Command) *wire.Result {
	ch := make(chan *wire.Result, 1)
	w.propose([]*wire.Command{c}, func(res []*wire.Result, err error) {
		if err != nil {
			res = []*wire.Result{{Code: wire.CodeOf(err)}}
		}
		ch <- res[0]
	})
	return <-ch
}

func (w *world) open(id, owner string, attached bool) {
	w.t.Helper()
	res := w.must(w.openCommand(id, owner))
	if attached {
		w.must(&wire.Command{Kind: &wire.Command_Attach{Attach: &wire.Attach{
			Session: id, Epoch: res[0].GetEpoch(), Owner: w.owner(owner), Number: 1, Client: clientOf(id), Fresh: true,
		}}})
	}
}

func (w *world) openCommand(id, owner string) *wire.Command {
	return &wire.Command{Kind: &wire.Command_Open{Open: &wire.OpenSession{
		Session: id, Nonce: []byte(id + "-nonce"), SecretHash: make([]byte, 32), TtlUs: uint64(time.Hour / time.Microsecond),
		Owner: w.owner(owner), DeadlineUs: w.nowUS() + 1e6, By: "test",
	}}}
}

func clientOf(session string) []byte { return fmt.Appendf(nil, "%16.16s", session) }

func (w *world) row(id string) (row *wire.SessionRow) {
	w.view(func(s *store.Store) { row = s.Row(id) })
	return row
}

// run has fn done around what a worker does for a call.
func (w *world) hook(ctx context.Context, name string) error {
	w.mu.Lock()
	fn := w.on[name]
	w.mu.Unlock()
	if fn == nil {
		return nil
	}
	return fn(ctx)
}

func (w *world) set(name string, fn func(context.Context) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on[name] = fn
}

func (w *world) call(ctx context.Context, name string, do func() error) error {
	if _, ok := ctx.Deadline(); !ok {
		w.t.Errorf("%s has no deadline", name)
	}
	if err := w.hook(ctx, name); err != nil {
		return err
	}
	time.Sleep(time.Millisecond)
	if err := do(); err != nil {
		return err
	}
	return w.hook(ctx, name+"+")
}

func (w *world) Prepare(ctx context.Context, to *wire.WorkerRow, req *wire.PrepareReq) error {
	return w.call(ctx, "prepare", func() error {
		if to.GetId() != req.GetMigration().GetTarget().GetWorker() {
			return errors.New("prepare went to another than the target")
		}
		return nil
	})
}

func (w *world) Confirm(ctx context.Context, to *wire.WorkerRow, req *wire.ConfirmReq) (*wire.ConfirmResp, error) {
	resp := &wire.ConfirmResp{}
	w.mu.Lock()
	say := w.say
	w.mu.Unlock()
	for _, o := range req.GetOffers() {
		c := Accept()
		if say != nil {
			c = say(to.GetId(), o)
		}
		resp.Answers = append(resp.Answers, c.Proto())
	}
	return resp, w.call(ctx, "confirm", func() error { return nil })
}

func (w *world) Order(ctx context.Context, to *wire.WorkerRow, req *wire.OrderReq) (*wire.OrderResp, error) {
	resp := &wire.OrderResp{}
	return resp, w.call(ctx, "order", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.order != nil {
			resp.Sessions, resp.Last = w.order(to.GetId(), req.GetAfter())
		}
		return nil
	})
}

func (w *world) Invite(ctx context.Context, to *wire.WorkerRow, req *wire.InviteReq) (resp *wire.InviteResp, err error) {
	err = w.call(ctx, "invite", func() error {
		m := req.GetMigration()
		b := BindingOf(testCluster, m)
		var stored *wire.Migration
		w.view(func(s *store.Store) { stored = s.Migration(m.GetId()) })
		if err := Check(Token(req.GetToken()), b, stored, w.nowUS()); err != nil {
			return err
		}
		resp = &wire.InviteResp{Clients: w.clients(m.GetSession())}
		return nil
	})
	return resp, err
}

func (w *world) clients(session string) (clients [][]byte) {
	for _, a := range w.row(session).GetAttachments() {
		clients = append(clients, a.GetClient())
	}
	return clients
}

func (w *world) AwaitWarm(ctx context.Context, to *wire.WorkerRow, req *wire.WarmReq) (resp *wire.WarmResp, err error) {
	err = w.call(ctx, "warm", func() error {
		var m *wire.Migration
		w.view(func(s *store.Store) { m = s.Migration(req.GetMigration()) })
		resp = &wire.WarmResp{Clients: w.clients(m.GetSession())}
		return nil
	})
	return resp, err
}

func (w *world) Handover(ctx context.Context, to *wire.WorkerRow, req *wire.HandoverReq) (resp *wire.HandoverResp, err error) {
	type answer struct {
		resp *wire.HandoverResp
		err  error
	}
	ch := make(chan answer, 1)
	w.wg.Go(func() {
		var a answer
		a.err = w.call(ctx, "handover", func() error {
			id := req.GetMigration().GetId()
			us := w.pausing()
			row := w.row(req.GetMigration().GetSession())
			res := w.proposeWait(&wire.Command{Kind: &wire.Command_Pivot{Pivot: &wire.CommitPivot{
				Migration: id, Change: row.GetChange(), Digest: 1, Attested: id, Warm: req.GetWarm(),
			}}})
			a.resp = &wire.HandoverResp{Migration: res.GetMigration(), FreezeUs: 100, TransferUs: us - 100, PauseUs: us}
			return nil
		})
		if a.err != nil {
			a.resp = nil
		}
		ch <- a
	})
	select {
	case a := <-ch:
		return a.resp, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// pausing is what a handover does to its session, in microseconds: by default
// always the same, else by how many there are at once.
func (w *world) pausing() uint64 {
	w.mu.Lock()
	if w.pause == nil {
		w.mu.Unlock()
		return 2100
	}
	w.handing++
	d := w.pause(w.handing)
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	w.handing--
	w.mu.Unlock()
	return uint64(d / time.Microsecond)
}

// hang waits for as long as the caller does.
func hang(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// director starts a director in its own term; end ends the term and waits.
func (w *world) director(change ...func(*DirectorConfig)) (d *Director, end func()) {
	cfg := DirectorConfig{
		View: w.view, Propose: w.propose, NowUS: w.logTimeUS, Clock: w, Rand: rand.Reader,
		ClusterID: func() []byte { return testCluster }, Self: "n1", Call: w, Fencing: promises{w},
		Alive: w.alive,
	}
	for _, f := range change {
		f(&cfg)
	}
	d = NewDirector(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		d.Run(ctx)
		close(done)
	}()
	w.mu.Lock()
	w.nudge = append(w.nudge, d.Nudge)
	w.mu.Unlock()
	synctest.Wait()
	return d, func() {
		cancel()
		<-done
	}
}

// quiet waits until nothing is under way any more, and checks that.
func (w *world) quiet() {
	w.t.Helper()
	for range 400 {
		time.Sleep(100 * time.Millisecond)
		var open, lost int
		w.view(func(s *store.Store) { open, lost = len(s.ActiveMigrations()), s.Counts().Ownerless })
		if open == 0 && lost == 0 {
			return
		}
	}
	w.t.Errorf("not settled: %v", w.active())
}

func (w *world) active() (list []*wire.Migration) {
	w.view(func(s *store.Store) { list = s.ActiveMigrations() })
	return list
}

func (w *world) history(limit int) (list []*wire.Migration) {
	w.view(func(s *store.Store) { list = s.Migrations(limit) })
	return list
}

func (w *world) proposed(is func(*wire.Command) bool) (n int, batches []int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.batches {
		k := 0
		for _, c := range b {
			if is(c) {
				k++
			}
		}
		if n += k; k > 0 {
			batches = append(batches, k)
		}
	}
	return n, batches
}

func request(session, target string) Request {
	return Request{Session: session, Target: target, Reason: wire.Reason_REASON_ADMIN_REQUEST, By: "test"}
}

func states(r Report) (list []State) {
	for _, s := range r.Steps {
		list = append(list, s.State)
	}
	return slices.Clip(list)
}
