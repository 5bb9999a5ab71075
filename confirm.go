package baton

import (
	"context"
	"runtime/debug"
	"sync"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/wire"
)

const (
	// confirmTime is what the application has to answer; none is a deferral.
	confirmTime = time.Second
	// overloadedFor is how long a target that cannot keep up asks to be left
	// alone.
	overloadedFor = 5 * time.Second
)

// MoveOffer is a move of a session that a node's application may object to.
type MoveOffer struct {
	Session  string
	From, To string // node names
	// Leaving: this node is the source, else the target.
	Leaving  bool
	Attached bool   // a client is connected
	Reason   string // as in MigrateRequest
	Priority uint32
	By       string
}

// Confirmation is the answer to a MoveOffer: AcceptMove, RejectMove or DeferMove. The
// zero value accepts.
type Confirmation = migrate.Confirmation

// AcceptMove lets a session move.
func AcceptMove() Confirmation { return migrate.Accept() }

// RejectMove keeps a session where it is.
func RejectMove(reason string) Confirmation { return migrate.Reject(reason) }

// DeferMove keeps a session where it is until after has passed; then the move is
// asked for again.
func DeferMove(reason string, after time.Duration) Confirmation { return migrate.Defer(reason, after) }

// confirmMoves answers the director about moves off or onto this node.
func (n *Node) confirmMoves(ctx context.Context, req *wire.ConfirmReq) (*wire.ConfirmResp, error) {
	resp := &wire.ConfirmResp{Answers: make([]*wire.MoveAnswer, len(req.GetOffers()))}
	var wg sync.WaitGroup
	for i, o := range req.GetOffers() {
		c := n.fit(o)
		if c.Verdict != wire.Verdict_VERDICT_ACCEPT || n.cfg.ConfirmMove == nil {
			resp.Answers[i] = c.Proto()
			continue
		}
		wg.Go(func() { resp.Answers[i] = n.askApp(ctx, o).Proto() })
	}
	wg.Wait()
	return resp, nil
}

// fit is the node's own answer: a target whose commands do not come back would
// only make its new sessions wait.
func (n *Node) fit(o *wire.MoveOffer) Confirmation {
	if o.GetTarget().GetWorker() == n.id && n.worker.Stalled() {
		return migrate.Defer("the target cannot reach the log just now", overloadedFor)
	}
	return migrate.Accept()
}

// askApp waits for the application no longer than it said it would, and asks it nothing
// of a session of which it owes an answer still.
func (n *Node) askApp(ctx context.Context, o *wire.MoveOffer) Confirmation {
	late := migrate.Defer("the application did not answer in time", confirmTime)
	if _, owed := n.asked.LoadOrStore(o.GetSession(), true); owed {
		return late
	}
	ctx, cancel := context.WithTimeout(ctx, confirmTime)
	answer := make(chan Confirmation, 1)
	go func() { // for as long as the application likes: nobody can end it
		defer cancel()
		answer <- func() Confirmation {
			defer n.asked.Delete(o.GetSession()) // first: the next question may come at once
			return n.callApp(ctx, o)
		}()
	}()
	select {
	case c := <-answer:
		return c
	case <-ctx.Done():
		return late
	}
}

// callApp has a panic of the application keep the session where it is.
func (n *Node) callApp(ctx context.Context, o *wire.MoveOffer) (c Confirmation) {
	defer func() {
		if p := recover(); p != nil {
			n.cfg.Log.Error("ConfirmMove panicked", "session", o.GetSession(), "panic", p, "stack", string(debug.Stack()))
			c = migrate.Reject("the application failed when it was asked")
		}
	}()
	return n.cfg.ConfirmMove(ctx, MoveOffer{
		Session: o.GetSession(), From: n.workerName(o.GetSource().GetWorker()), To: n.workerName(o.GetTarget().GetWorker()),
		Leaving: o.GetSource().GetWorker() == n.id, Attached: o.GetAttached(), Reason: reasonName(o.GetReason()),
		Priority: o.GetPriority(), By: o.GetBy(),
	})
}
