package baton

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// Confirmation by an operator, where the leader's Config.Confirm asks for it.

// MoveDecision is an operator's answer to a move that waits for confirmation.
type MoveDecision struct {
	Request uint64 `json:"request"` // as MigrationInfo.Request
	Verdict string `json:"verdict"` // confirm, reject, defer
	Reason  string `json:"reason,omitempty"`
	ForUS   int64  `json:"for_us,omitempty"` // defer: it then waits for so much longer
	By      string `json:"by,omitempty"`
}

// DecideMove confirms, rejects or puts off a move that waits for confirmation. A
// confirmed move goes on, and its end is waited for. UNKNOWN_REQUEST: nothing
// waits under that number any more. UNAVAILABLE, DEADLINE_EXCEEDED: Migrations tells
// what came of it.
func (a *Admin) DecideMove(ctx context.Context, d MoveDecision) (MigrationInfo, error) {
	return askOnce[MigrationInfo](ctx, a, "decide", d)
}

func (n *Node) decideMove(ctx context.Context, req MoveDecision) (MigrationInfo, error) {
	dec := migrate.Decision{Request: req.Request, By: req.By}
	if dec.By == "" {
		dec.By = "operator"
	}
	switch req.Verdict {
	case "confirm":
	case "reject":
		dec.Confirmation = migrate.Reject(req.Reason)
	case "defer":
		dec.Confirmation = migrate.Defer(req.Reason, time.Duration(req.ForUS)*time.Microsecond)
	default:
		return MigrationInfo{}, wire.Errorf(wire.Code_BAD_REQUEST, "%q is no decision: use confirm, reject or defer", req.Verdict)
	}
	rep, err := n.director.Decide(ctx, dec)
	if err != nil {
		return MigrationInfo{}, err
	}
	return n.reportInfo(rep), nil
}

// confirmBy is the log time until which a job waits for an operator, 0: it need
// not.
func (n *Node) confirmBy(c *wire.StartJob) uint64 {
	reason := wire.Reason_REASON_LOAD_BALANCING
	if c.GetKind() == wire.JobKind_JOB_KIND_DRAIN {
		reason = wire.Reason_REASON_PLANNED_MAINTENANCE
	}
	if a := n.cfg.approval; a.Asks(reason, c.GetPriority(), c.GetBy()) {
		return n.cluster.LogTimeUS() + uint64(a.Within/time.Microsecond)
	}
	return 0
}

// waitingMoves are those that the log does not know, as they have not begun.
func waitingMoves(all []migrate.Report) (waiting []migrate.Report) {
	for _, r := range all {
		if r.Migration == 0 && r.State == migrate.WaitingConfirmation {
			waiting = append(waiting, r)
		}
	}
	return waiting
}

// metadata as it travels, by rising key, and as people are shown it.
func labelsOf(m map[string]string) (list []*wire.Label) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, &wire.Label{Key: k, Value: m[k]})
	}
	return list
}

func metadataOf(list []*wire.Label) map[string]string {
	if len(list) == 0 {
		return nil
	}
	m := make(map[string]string, len(list))
	for _, l := range list {
		m[l.GetKey()] = l.GetValue()
	}
	return m
}

// noteMigrations completes a session's history with what the records of its
// migrations say, as long as they are remembered.
func (n *Node) noteMigrations(e *Explanation) {
	n.cluster.FSM().View(func(st *store.Store) {
		for i := range e.Changes {
			if m := st.Migration(e.Changes[i].Migration); m != nil && e.Changes[i].Migration != 0 {
				e.Changes[i].ConfirmedBy, e.Changes[i].Metadata = m.GetConfirmedBy(), metadataOf(m.GetMetadata())
			}
		}
	})
}
