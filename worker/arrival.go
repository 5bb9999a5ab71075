package worker

import (
	"context"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// The target's side of a transfer ("Life of a pivot", steps 6 and 7): it gathers
// the snapshot, opens it and commits the pivot.

// arrivingBytesMax bounds the snapshots that arrive at a node at one time: eight
// of the largest, thousands of the usual. Opening one needs its size again for a
// moment.
const arrivingBytesMax = 8 * migrate.SealedBytesMax

// room is what is left of arrivingBytesMax.
type room struct{ used atomic.Int64 }

func (r *room) take(n int64) bool {
	if r.used.Add(n) <= arrivingBytesMax {
		return true
	}
	r.used.Add(-n)
	return false
}

func (r *room) give(n int64) { r.used.Add(-n) }

// arrival is one snapshot of a migration, and what the pivot with it came to.
// incoming.mu guards all but resp and err, which done publishes.
type arrival struct {
	capture uint32
	bytes   int64             // taken of the node's room
	in      *migrate.Arriving // nil once it is opened
	done    chan struct{}     // closed with resp and err set
	resp    *wire.TransferResp
	err     error
}

func (a *arrival) settled() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// Transfer takes a sealed snapshot, or a chunk of it. The one that completes it
// commits the pivot and activates the session, and is answered with the outcome,
// as is each that asks for it again. That goes on when ctx ends: the log has
// decided, or will.
func (w *Worker) Transfer(ctx context.Context, req *wire.TransferReq) (*wire.TransferResp, error) {
	in := w.expected(req.GetMigration())
	if in == nil {
		return w.outcome(req.GetMigration())
	}
	a, received, whole, err := w.receive(in, req)
	switch {
	case err == errOver:
		return w.outcome(req.GetMigration())
	case err != nil:
		return nil, err
	case a == nil:
		return &wire.TransferResp{Received: received}, nil
	case whole != nil:
		w.pivot(ctx, in, a, whole, req.GetWarm())
	}
	select {
	case <-a.done:
		return a.resp, a.err
	case <-ctx.Done():
		return nil, wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the pivot is with the log")
	case <-w.ctx.Done():
		return nil, wire.Errorf(wire.Code_SHUTTING_DOWN, "the node stops")
	}
}

// errOver: the move has come to its end here, one way or another.
var errOver = wire.Errorf(wire.Code_MIGRATION_ENDED, "the move is off at the target")

// outcome answers for a migration that this incarnation does not expect, or not
// any more: it is decided, or it was meant for another.
func (w *Worker) outcome(id uint64) (*wire.TransferResp, error) {
	var m *wire.Migration
	w.cfg.View(func(st *store.Store) { m = st.Migration(id) })
	switch m.GetPhase() {
	case wire.Phase_PHASE_PIVOTED, wire.Phase_PHASE_COMPLETED:
		return &wire.TransferResp{Migration: m}, nil
	case wire.Phase_PHASE_ABORTED, wire.Phase_PHASE_FAILED:
		return nil, wire.Errorf(wire.Code_MIGRATION_ENDED, "the migration is over: %s", m.GetWhy())
	case wire.Phase_PHASE_BEGUN:
		if proto.Equal(m.GetTarget(), w.owner()) {
			return nil, errOver
		}
		return nil, wire.Errorf(wire.Code_TARGET_STALE, "this is not the incarnation that the migration names: the target started anew")
	}
	return nil, wire.Errorf(wire.Code_UNKNOWN_MIGRATION, "this node expects no such migration")
}

// receive keeps a chunk. It returns the arrival if req asks for the outcome, and
// the whole snapshot to whom it falls to pivot with it.
func (w *Worker) receive(in *incoming, req *wire.TransferReq) (a *arrival, received uint64, whole *migrate.Arriving, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return nil, 0, nil, errOver
	}
	if a, err = w.arrivalOf(in, req); err != nil {
		return nil, 0, nil, err
	}
	if a.in == nil { // opened: what comes again waits for the outcome
		return a, req.GetTotal(), nil, nil
	}
	received, complete, err := a.in.Add(req)
	if err != nil || !complete {
		return nil, received, nil, err
	}
	whole, a.in = a.in, nil
	in.pivots++
	return a, received, whole, nil
}

// arrivalOf is the arrival that req is of, made if it is the first of it. in.mu
// is held.
func (w *Worker) arrivalOf(in *incoming, req *wire.TransferReq) (*arrival, error) {
	old := in.arrival
	switch {
	case old != nil && req.GetCapture() == old.capture:
		return old, nil
	case old != nil && (req.GetCapture() < old.capture || old.in == nil && !old.settled()):
		return nil, wire.Errorf(wire.Code_RETRY, "another capture of the session is being taken")
	}
	w.release(in)
	size := int64(min(req.GetTotal(), migrate.SealedBytesMax))
	if !w.arriving.take(size) {
		return nil, wire.Errorf(wire.Code_OVERLOADED, "%d bytes of snapshots arrive at this node already: send it again in a moment", arrivingBytesMax)
	}
	arriving, err := migrate.Arrive(req)
	if err != nil {
		w.arriving.give(size)
		return nil, err
	}
	in.arrival = &arrival{capture: req.GetCapture(), bytes: size, in: arriving, done: make(chan struct{})}
	return in.arrival, nil
}

// release gives an arrival's room back, unless its pivot is under way. in.mu is
// held.
func (w *Worker) release(in *incoming) {
	if a := in.arrival; a != nil && (a.in != nil || a.settled()) {
		w.arriving.give(a.bytes)
		a.bytes, a.in = 0, nil
	}
}

// settle publishes what an arrival came to. The log may have ended the migration
// while its pivot was under way, which was then for this to notice.
func (w *Worker) settle(in *incoming, a *arrival, resp *wire.TransferResp, err error) {
	in.mu.Lock()
	a.resp, a.err = resp, err
	close(a.done)
	in.pivots--
	w.arriving.give(a.bytes)
	a.bytes = 0
	in.mu.Unlock()
	w.observeMigration(in.m.GetId())
}

// pivotsUnderWay reports whether a transfer has yet to act on the log's answer.
func (in *incoming) pivotsUnderWay() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.pivots > 0
}

// pivot opens the snapshot, proposes CommitPivot and settles the arrival.
//
// The pivot takes the session's turn like any command of its own: nothing else
// of the session is with the log beside it, so that its row is the newest there
// is when it becomes the activation, and a freeze for the next move waits for it.
func (w *Worker) pivot(ctx context.Context, in *incoming, a *arrival, whole *migrate.Arriving, warm [][]byte) {
	state, digest, err := w.open(ctx, in, whole)
	if err != nil {
		w.settle(in, a, nil, err)
		return
	}
	var with brought
	var proposed, settled time.Duration
	w.with(in.m.GetSession(), func(s *session) {
		s.enqueue(op{
			park: true, // if this node was the source once and has not heard of it
			build: func(*session) []*wire.Command {
				if _, all := in.arrived(warm); !all {
					w.settle(in, a, &wire.TransferResp{Code: wire.Code_CLIENT_CANNOT_REACH}, nil)
					return nil
				}
				proposed = w.cfg.Clock.Now()
				return []*wire.Command{{Kind: &wire.Command_Pivot{Pivot: &wire.CommitPivot{
					Migration: in.m.GetId(), Change: state.GetChange(), Digest: digest,
					Attested: state.GetMigration(), Warm: warm,
				}}}}
			},
			before: func(s *session, res []*wire.Result) {
				settled = w.cfg.Clock.Now()
				// H4: the live state is that of the snapshot which the commit names.
				if r := res[0]; r.GetCode() == wire.Code_OK && r.GetRow() != nil {
					committed := r.GetMigration().GetDigest() == digest
					with.gap = s.w.beginEpoch(r, state.GetLive(), state.GetHasLive() && committed)
					if committed {
						s.w.streams.install(r, state.GetStreams())
						with.streamsSince = state.GetStreamsSince()
					}
				}
			},
			done: func(s *session, res []*wire.Result, err error) {
				resp := in.pivotSettled(s, res, err, with)
				resp.CommitUs = uint64(max(settled-proposed, 0).Microseconds())
				w.settle(in, a, resp, nil)
			},
		})
	})
}

// open verifies and opens a snapshot that is there as a whole.
func (w *Worker) open(ctx context.Context, in *incoming, whole *migrate.Arriving) (*wire.ConnectionState, uint64, error) {
	sealed, err := whole.Sealed()
	if err != nil {
		return nil, 0, err
	}
	generation, err := migrate.SealedWith(sealed)
	if err != nil {
		return nil, 0, err
	}
	key, err := w.sealKey(ctx, generation)
	if err != nil {
		return nil, 0, err
	}
	state, digest, err := migrate.Unseal(key, migrate.BindingOf(w.cfg.ClusterID(), in.m), sealed)
	if err == nil {
		w.cfg.Logger.Debug("a snapshot has arrived", "session", state.GetSession(), "migration", state.GetMigration(),
			"bytes", len(sealed), "generation", generation, "connections", state.GetConnections())
	}
	return state, digest, err
}

// sealKey is the key of a generation. One that the source has heard of first is
// about to be heard of here, within ctx; one that is older than all was dropped.
func (w *Worker) sealKey(ctx context.Context, generation uint64) (migrate.SealKey, error) {
	for {
		changed := w.changed.wait()
		if key, ok := w.cfg.Seals.Of(generation); ok {
			return key, nil
		}
		newest := w.cfg.Seals.Newest().Generation
		if generation <= newest {
			return migrate.SealKey{}, wire.Errorf(wire.Code_KEY_UNKNOWN,
				"the snapshot was sealed with generation %d of the key ring, which is gone: the newest is %d", generation, newest)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return migrate.SealKey{}, wire.Errorf(wire.Code_KEY_UNKNOWN,
				"the snapshot was sealed with generation %d of the key ring, of which the target has not heard in time", generation)
		case <-w.ctx.Done():
			return migrate.SealKey{}, wire.Errorf(wire.Code_SHUTTING_DOWN, "the node stops")
		}
	}
}
