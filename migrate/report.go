package migrate

import (
	"time"

	"github.com/baton-cluster/baton/wire"
)

// Report is what is known of one migration.
type Report struct {
	Migration uint64 `json:"migration"` // 0: not begun
	Session   string `json:"session"`
	State     State  `json:"state"`
	From      string `json:"from"` // worker ids
	To        string `json:"to"`
	Epoch     uint64 `json:"epoch"` // the new one, 0 before the pivot
	PauseUS   uint64 `json:"pause_us"`
	Parts     Parts  `json:"parts"`
	// Connections served the session at the source, if that has handed it over.
	Connections []*wire.Connection `json:"-"`
	Reason      wire.Reason        `json:"-"`
	Priority    uint32             `json:"priority"`
	By          string             `json:"by"`
	// Request is what an operator names to confirm the move, until it begins.
	Request     uint64        `json:"request,omitempty"`
	ConfirmedBy string        `json:"confirmed_by,omitempty"`
	ExpiresUS   int64         `json:"expires_us,omitempty"` // of an awaited confirmation: how long it is still waited for
	Metadata    []*wire.Label `json:"-"`
	Why         string        `json:"why,omitempty"` // of an end that is not Completed, or of a deferral
	Steps       []Step        `json:"steps"`
}

// Parts are what the pause consists of, as the nodes saw it.
type Parts struct {
	FreezeUS   uint64 `json:"freeze_us"`   // what ran was settled, live state given up
	TransferUS uint64 `json:"transfer_us"` // seal, call to the target, answer
	CommitUS   uint64 `json:"commit_us"`   // CommitPivot in the log
}

// Step is one state that a migration entered.
type Step struct {
	State State `json:"state"`
	// At is when it was entered, RFC 3339, by the director's wall clock.
	At string `json:"at"`
	// TookUS is how long it stayed, in microseconds; so far, for the last one of
	// a migration under way.
	TookUS int64 `json:"took_us"`
}

// Report tells of h. now is the elapsed time at which the wall clock showed
// wall.
func (h *Handoff) Report(now time.Duration, wall time.Time) Report {
	r := Report{
		Migration:   h.m.GetId(),
		Session:     h.p.Request.Session,
		State:       h.state,
		To:          h.p.Request.Target,
		Epoch:       h.epoch,
		PauseUS:     h.pauseUS,
		Parts:       h.parts,
		Connections: h.conns,
		Reason:      h.p.Request.Reason,
		Priority:    h.p.Request.Priority,
		By:          h.p.Request.By,

		ConfirmedBy: h.confirmedBy, Metadata: h.p.Request.Metadata,
	}
	if h.NeedsApproval() {
		r.ExpiresUS = max(h.deadline-now, 0).Microseconds()
	}
	if h.plan != nil {
		r.From, r.To = h.plan.Source.GetWorker(), h.plan.Target.GetWorker()
	}
	if h.deferral != nil && (h.again != 0 || h.NeedsApproval()) {
		r.Why = h.deferral.Error()
	}
	if h.err != nil {
		r.Why = h.err.Error()
	}
	for i, p := range h.passages {
		end := now
		if i+1 < len(h.passages) {
			end = h.passages[i+1].At
		} else if h.state.Terminal() {
			end = p.At
		}
		r.Steps = append(r.Steps, Step{
			State:  p.State,
			At:     wall.Add(p.At - now).UTC().Format(time.RFC3339Nano),
			TookUS: max(end-p.At, 0).Microseconds(),
		})
	}
	return r
}
