package migrate

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// Caller reaches the workers. A call ends when its context does, whose deadline
// says until when an answer is of use. A *wire.Error is the worker's refusal;
// any other error means that nobody knows what the worker did.
type Caller interface {
	// Prepare tells the target of a migration.
	Prepare(ctx context.Context, worker *wire.WorkerRow, req *wire.PrepareReq) error
	// Invite makes the source tell the attached clients of target and token.
	Invite(ctx context.Context, worker *wire.WorkerRow, req *wire.InviteReq) (*wire.InviteResp, error)
	// AwaitWarm asks the target which clients have arrived, once all have.
	AwaitWarm(ctx context.Context, worker *wire.WorkerRow, req *wire.WarmReq) (*wire.WarmResp, error)
	// Handover makes the source freeze, capture and transfer.
	Handover(ctx context.Context, worker *wire.WorkerRow, req *wire.HandoverReq) (*wire.HandoverResp, error)
	// Order asks a worker in what order its sessions are best moved away.
	Order(ctx context.Context, worker *wire.WorkerRow, req *wire.OrderReq) (*wire.OrderResp, error)
	// Confirm asks source or target whether moves suit it, one answer for each.
	Confirm(ctx context.Context, worker *wire.WorkerRow, req *wire.ConfirmReq) (*wire.ConfirmResp, error)
}

// Tunables are the director's paces. A zero value means the default.
type Tunables struct {
	// DrainConcurrency bounds the moves that all jobs together have under way
	// before their pivots. Default 64: each pauses one session, and the more there
	// are the more share an entry. Twice as many made a drain hardly faster and its
	// pauses longer.
	DrainConcurrency int
	// MovesMax bounds all migrations that a director has under way. Default 256.
	MovesMax int
	// HandoversMax bounds the sessions that are handed over at once, and so are
	// served by nobody; others wait while they are served. Default 16: enough to
	// share log entries, few enough not to wait for each other's work.
	HandoversMax int
	// QueueMax bounds the requests that wait for their turn, by priority; one
	// beyond it is refused with OVERLOADED. Default 1024.
	QueueMax int
	// NoTargetAfter is how long a job waits for a worker to move to before it
	// fails with NO_TARGET. Default 60 s: a restart takes less.
	NoTargetAfter time.Duration
	// Placement is how targets are chosen where a job does not say. Default
	// bounded load.
	Placement wire.Placement
	// AttachedBatch bounds the reassignments of sessions with clients that are
	// under way. Default: as many as one log entry holds, as clients wait.
	AttachedBatch int
	// AssignBatch and ExpireBatch bound those of sessions without clients, and
	// expiries. Default 256: an entry of them applies in well under a millisecond,
	// between those of the clients.
	AssignBatch, ExpireBatch int
	// TickEvery is how often log time is committed at least while a deadline is
	// pending. Default 10 s.
	TickEvery time.Duration
	// MigrationTimeout is the deadline of a migration that names none. Default
	// 15 s.
	MigrationTimeout time.Duration
	// ScanEvery is how often the tables are looked through without a Nudge.
	// Default 100 ms.
	ScanEvery time.Duration
}

func (t *Tunables) setDefaults() {
	def(&t.DrainConcurrency, 64)
	def(&t.MovesMax, 256)
	def(&t.HandoversMax, 16)
	def(&t.QueueMax, 1024)
	def(&t.NoTargetAfter, time.Minute)
	def(&t.AttachedBatch, wire.EntryCommandsMax)
	def(&t.AssignBatch, 256)
	def(&t.ExpireBatch, 256)
	def(&t.TickEvery, 10*time.Second)
	def(&t.MigrationTimeout, 15*time.Second)
	def(&t.ScanEvery, 100*time.Millisecond)
	t.MigrationTimeout = min(max(t.MigrationTimeout, DeadlineMin), DeadlineMax)
	t.AssignBatch = min(t.AssignBatch, wire.EntryCommandsMax)
	t.AttachedBatch = min(t.AttachedBatch, wire.EntryCommandsMax)
	t.ExpireBatch = min(t.ExpireBatch, wire.EntryCommandsMax)
}

func def[T int | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// DirectorConfig is what a Director needs of the world.
type DirectorConfig struct {
	// View runs fn on the applied state, under its read lock.
	View func(fn func(*store.Store))
	// Propose commits cmds and calls done once, from any goroutine, with a result
	// for each. It never blocks. An error is a *wire.Error: SHUTTING_DOWN leaves
	// the outcome unknown, any other says that nothing was proposed.
	Propose func(cmds []*wire.Command, done func([]*wire.Result, error))
	// NowUS is log time now. It looks at the state, too: never within View, as who
	// holds a read lock and waits for another, behind a writer, waits for ever.
	NowUS func() uint64
	Clock seam.Clock
	// Rand is a cryptographic source, used by one goroutine at a time.
	Rand io.Reader
	// ClusterID is the cluster's identity.
	ClusterID func() []byte
	// Self is the id of the worker beside this director.
	Self string
	// Alive is gossip's view of a worker. It must not block.
	Alive func(workerID string) (alive, known bool)
	Call  Caller
	// Fencing reaches the servers whose promises must run out before a fence.
	Fencing Fencing
	// Confirm, where set, is asked before a migration begins, after source and
	// target have accepted it. An error refuses the move with its code. It is
	// called on its own goroutine; ctx ends with the migration's time.
	Confirm func(ctx context.Context, req Request, plan Plan) (Confirmation, error)
	// AutoConfirm says which moves nobody is asked about; nil: those of an
	// emergency.
	AutoConfirm func(req Request) bool
	// Approval says which moves wait for an operator's confirmation before anybody
	// else is asked. Jobs are confirmed by whoever starts them (StartJob).
	Approval Approval
	// Log; nil discards.
	Log *slog.Logger
	Tunables

	times *timeline
}

// Director moves and looks after sessions while its node leads: it fences dead
// workers, gives ownerless sessions an owner, expires, keeps log time moving
// while a deadline is pending, runs jobs and requested migrations, and settles
// those that an earlier director left. All its state is lost with it, and none
// of it is needed by the next.
type Director struct {
	cfg DirectorConfig

	running sync.Mutex // held by Run: one at a time
	cur     atomic.Pointer[run]
	counts  counts
}

// counts outlive a term of directing.
type counts struct{ falseAlarms, fences atomic.Uint64 }

// Detection tells whom this director suspects, and how it has fared.
func (d *Director) Detection() Detection {
	out := Detection{FalseAlarms: d.counts.falseAlarms.Load(), Fences: d.counts.fences.Load()}
	if r := d.cur.Load(); r != nil {
		out.Suspects = r.suspected()
	}
	return out
}

// NewDirector makes a Director that does nothing until Run.
func NewDirector(cfg DirectorConfig) *Director {
	cfg.setDefaults()
	if cfg.AutoConfirm == nil {
		cfg.AutoConfirm = autoConfirm
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.times = &timeline{clock: cfg.Clock}
	return &Director{cfg: cfg}
}

// Run directs until ctx ends, and returns when all that it started has ended.
// It is to be called while this node leads. A second call waits for the first.
func (d *Director) Run(ctx context.Context) {
	d.running.Lock()
	defer d.running.Unlock()
	r := newRun(ctx, &d.cfg, &d.counts)
	d.cur.Store(r)
	r.loop(ctx)
	d.cur.Store(nil)
}

// Nudge says that the tables changed in a way that may concern the director: a
// worker, an owner, a migration. It is cheap and may be called at any rate, from
// any goroutine.
func (d *Director) Nudge() {
	if r := d.cur.Load(); r != nil {
		r.nudge()
	}
}

// Migrate moves one session, and returns when that has ended or ctx has. The
// report tells what is known in either case. A session that is already where
// it should go is refused with SAME_NODE.
//
// Errors are *wire.Error. BAD_REQUEST; NOT_LEADER, OVERLOADED; of the session
// UNKNOWN_SESSION, SESSION_CLOSED, SESSION_EXPIRED, NO_OWNER, MIGRATION_ACTIVE;
// of the target UNKNOWN_WORKER, WORKER_FENCED, TARGET_DRAINING, NO_TARGET; the
// code of the call that failed (CLIENT_CANNOT_REACH, UNAVAILABLE, …): the
// session then stays where it is; UNAVAILABLE with a report that is not final:
// this director stopped, and the next one settles the move; CONFIRMATION_EXPIRED
// and MOVE_REJECTED, if an operator was to confirm it. If ctx ends first,
// the error is DEADLINE_EXCEEDED and the move goes on.
func (d *Director) Migrate(ctx context.Context, req Request) (Report, error) {
	none := Report{Session: req.Session, To: req.Target}
	if err := req.Validate(); err != nil {
		return none, err
	}
	if req.Priority == 0 {
		req.Priority = PriorityDefault
	}
	if req.Deadline == 0 {
		req.Deadline = d.cfg.MigrationTimeout
	}
	r := d.cur.Load()
	if r == nil {
		return none, notDirecting()
	}
	if _, err := d.locate(ctx, req.Session); err != nil {
		return none, err
	}
	m := &move{req: req, done: make(chan struct{})}
	if !r.post(func() { r.startMove(m) }) {
		return none, notDirecting()
	}
	select {
	case <-m.done:
		return m.report, m.err
	case <-ctx.Done():
	}
	r.post(func() {
		r.withdraw(m, wire.Code_CANCELLED, "its requester stopped waiting before an operator had confirmed it")
	})
	rep, ended := r.reportOf(m)
	if ended {
		return rep, m.err
	}
	if rep.ExpiresUS > 0 {
		return rep, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the caller stopped waiting before an operator had confirmed the move, which is withdrawn")
	}
	return rep, wire.Errorf(wire.Code_DEADLINE_EXCEEDED,
		"the caller stopped waiting in state %v; the move goes on by itself, see the list of migrations", rep.State)
}

// AssignNow gives session an owner if it has none that is valid, and returns
// where it is. It is for a client that asks before its batch comes.
//
// Errors are *wire.Error: UNKNOWN_SESSION, SESSION_CLOSED, SESSION_EXPIRED (by
// the log, not by this node's view), NO_TARGET (no worker can take it),
// NOT_LEADER, OVERLOADED, DEADLINE_EXCEEDED, RETRY.
func (d *Director) AssignNow(ctx context.Context, session string) (*wire.Location, error) {
	if d.cur.Load() == nil {
		return nil, notDirecting()
	}
	for range assignTries {
		loc, err := d.locate(ctx, session)
		if err != nil || loc.GetValid() {
			return loc, err
		}
		var cmd *wire.Command
		var was store.Summary
		d.cfg.View(func(s *store.Store) {
			sum, ok := s.Session(session)
			if !ok || sum.Valid {
				return
			}
			was = sum
			p := newPlacer(s, d.cfg.Alive, nil)
			p.policy = d.cfg.Placement
			if to := p.reassign(&sum); to != nil {
				cmd = assignCommand(s, &sum, to, d.cfg.Self)
			}
			err = p.err()
		})
		if cmd == nil && err != nil {
			return nil, err
		}
		if cmd == nil {
			continue // it changed in between
		}
		res, err := d.propose(ctx, cmd)
		if err != nil {
			return nil, err
		}
		if res.GetCode() == wire.Code_OK {
			d.cfg.times.assigned(was, res)
			return d.locationOf(res.GetRow()), nil
		}
		// STALE_EPOCH, OWNER_VALID: somebody else was faster. TARGET_STALE:
		// choose again.
	}
	return nil, wire.Errorf(wire.Code_RETRY, "session %q changes owner just now; ask again", session)
}

// locationOf is where the log has just put a row: this node's own state may lag
// behind.
func (d *Director) locationOf(row *wire.SessionRow) *wire.Location {
	loc := &wire.Location{
		Found: true, SecretHash: row.GetSecretHash(), Owner: row.GetOwner(), Epoch: row.GetEpoch(), Valid: true,
	}
	d.cfg.View(func(s *store.Store) { loc.Endpoint = s.Worker(loc.GetOwner().GetWorker()).GetEndpoint() })
	return loc
}

// assignTries bounds AssignNow: each try that fails means that somebody else
// changed the session or the chosen worker in between.
const assignTries = 4

// Active reports on all migrations under way, by their ids.
func (d *Director) Active() []Report {
	if r := d.cur.Load(); r != nil {
		return r.reports()
	}
	return nil
}

// Jobs tells what this director adds to the open jobs' rows, by id.
func (d *Director) Jobs() []JobStatus {
	if r := d.cur.Load(); r != nil {
		return r.jobStatuses()
	}
	return nil
}

// PlanRebalance plans on this node's tables. It changes nothing.
func (d *Director) PlanRebalance(opt RebalanceOptions) (plan Rebalance) {
	if opt.Policy == wire.Placement_PLACEMENT_UNSPECIFIED {
		opt.Policy = d.cfg.Placement
	}
	d.cfg.View(func(s *store.Store) { plan = PlanRebalance(s, d.cfg.Alive, opt) })
	return plan
}

// locate tells where session is. That it is not there is believed only of the
// log: this node may lag behind.
func (d *Director) locate(ctx context.Context, session string) (*wire.Location, error) {
	var loc *wire.Location
	d.cfg.View(func(s *store.Store) { loc = s.Location(session) })
	if loc.GetFound() {
		return loc, nil
	}
	res, err := d.propose(ctx, &wire.Command{Kind: &wire.Command_Locate{Locate: &wire.Locate{Session: session}}})
	if err != nil {
		return nil, err
	}
	if loc = res.GetLocation(); loc.GetFound() {
		return loc, nil
	}
	code := loc.GetGone()
	if code == wire.Code_OK {
		code = wire.Code_UNKNOWN_SESSION
	}
	return nil, wire.Errorf(code, "there is no session %q; open a new one", session)
}

// propose commits one command from a caller's goroutine.
func (d *Director) propose(ctx context.Context, cmd *wire.Command) (*wire.Result, error) {
	type answer struct {
		res []*wire.Result
		err error
	}
	ch := make(chan answer, 1)
	d.cfg.Propose([]*wire.Command{cmd}, func(res []*wire.Result, err error) { ch <- answer{res, err} })
	select {
	case a := <-ch:
		switch {
		case a.err != nil:
			return nil, asError(a.err)
		case len(a.res) != 1:
			return nil, wire.Errorf(wire.Code_INTERNAL, "one command got %d results", len(a.res))
		}
		return a.res[0], nil
	case <-ctx.Done():
		return nil, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the log did not answer in time; ask again")
	}
}

func notDirecting() *wire.Error {
	return wire.Errorf(wire.Code_NOT_LEADER, "this node does not lead; ask the leader")
}
