package migrate

import (
	"fmt"

	"github.com/baton-cluster/baton/wire"
)

// State is where a migration is in its life. The whole machine:
//
//	from                 on           next
//	Idle                 Requested    Initiating
//	Initiating           Checked      WaitingConfirmation
//	Initiating           Refused      Failed
//	WaitingConfirmation  Accepted     Preparing
//	WaitingConfirmation  Refused      Failed
//	Preparing            Refused      Failed
//	Preparing            Prepared     CapturingState
//	Preparing            RolledBack   Aborted
//	Preparing            Pivoted      Verifying
//	Preparing            Forgotten    Failed
//	CapturingState       Captured     TransferringState
//	CapturingState       RolledBack   Aborted
//	CapturingState       Pivoted      Verifying
//	CapturingState       Forgotten    Failed
//	TransferringState    Transferred  Pivoting
//	TransferringState    RolledBack   Aborted
//	TransferringState    Pivoted      Verifying
//	TransferringState    Forgotten    Failed
//	Pivoting             Pivoted      Verifying
//	Pivoting             RolledBack   Aborted
//	Pivoting             Forgotten    Failed
//	Verifying            Verified     Completing
//	Completing           Ended        Completed
//
// Completed, Aborted and Failed are final. Aborted means that commit 1 was
// undone by another commit; Failed, that there was no commit 1, or that the log
// had dropped the migration's record before this director learnt its end.
// TestNextMatchesDoc parses this comment and compares it with the table.
type State uint8

const (
	Idle State = iota
	Initiating
	WaitingConfirmation
	Preparing
	CapturingState
	TransferringState
	Pivoting
	Verifying
	Completing
	Completed
	Aborted
	Failed
	stateCount
)

// Event is what moves a migration from one state to the next.
type Event uint8

const (
	Requested   Event = iota // somebody asked for the move
	Checked                  // session, source and target exist and are valid
	Accepted                 // nobody who may object does
	Refused                  // it never began: nothing was committed
	Prepared                 // begun (commit 1), and the client is warm at the target
	Captured                 // the source froze the session and captured its state
	Transferred              // the target has the sealed snapshot
	Pivoted                  // the log says so: commit 2
	Verified                 // the new owner is on record and was heard of
	Ended                    // commit 3
	RolledBack               // the log says that it was aborted
	Forgotten                // the log has dropped the record, outcome unknown here
	eventCount
)

var stateNames = [stateCount]string{
	Idle:                "Idle",
	Initiating:          "Initiating",
	WaitingConfirmation: "WaitingConfirmation",
	Preparing:           "Preparing",
	CapturingState:      "CapturingState",
	TransferringState:   "TransferringState",
	Pivoting:            "Pivoting",
	Verifying:           "Verifying",
	Completing:          "Completing",
	Completed:           "Completed",
	Aborted:             "Aborted",
	Failed:              "Failed",
}

var eventNames = [eventCount]string{
	Requested:   "Requested",
	Checked:     "Checked",
	Accepted:    "Accepted",
	Refused:     "Refused",
	Prepared:    "Prepared",
	Captured:    "Captured",
	Transferred: "Transferred",
	Pivoted:     "Pivoted",
	Verified:    "Verified",
	Ended:       "Ended",
	RolledBack:  "RolledBack",
	Forgotten:   "Forgotten",
}

// none marks an event that a state does not take. It is no State, so that the
// zero value of the table cannot pass for Idle.
const none = stateCount

// transitions is the machine. Anything not listed is refused.
var transitions = buildTransitions([]transition{
	{Idle, Requested, Initiating},
	{Initiating, Checked, WaitingConfirmation},
	{Initiating, Refused, Failed},
	{WaitingConfirmation, Accepted, Preparing},
	{WaitingConfirmation, Refused, Failed},
	{Preparing, Refused, Failed},
	{Preparing, Prepared, CapturingState},
	{Preparing, RolledBack, Aborted},
	{Preparing, Pivoted, Verifying},
	{Preparing, Forgotten, Failed},
	{CapturingState, Captured, TransferringState},
	{CapturingState, RolledBack, Aborted},
	{CapturingState, Pivoted, Verifying},
	{CapturingState, Forgotten, Failed},
	{TransferringState, Transferred, Pivoting},
	{TransferringState, RolledBack, Aborted},
	{TransferringState, Pivoted, Verifying},
	{TransferringState, Forgotten, Failed},
	{Pivoting, Pivoted, Verifying},
	{Pivoting, RolledBack, Aborted},
	{Pivoting, Forgotten, Failed},
	{Verifying, Verified, Completing},
	{Completing, Ended, Completed},
})

type transition struct {
	from State
	on   Event
	next State
}

func buildTransitions(rows []transition) (table [stateCount][eventCount]State) {
	for s := range table {
		for e := range table[s] {
			table[s][e] = none
		}
	}
	for _, r := range rows {
		table[r.from][r.on] = r.next
	}
	return table
}

// Next returns the state after event on in state s. An event that s does not
// take is an INTERNAL error, and the state stays.
func Next(s State, on Event) (State, error) {
	if s >= stateCount || on >= eventCount || transitions[s][on] == none {
		return s, wire.Errorf(wire.Code_INTERNAL, "a migration in state %v does not take event %v", s, on)
	}
	return transitions[s][on], nil
}

// Terminal reports whether s is final.
func (s State) Terminal() bool { return s == Completed || s == Aborted || s == Failed }

// String is the state's name as reports and the command line print it.
func (s State) String() string {
	if s < stateCount {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// MarshalText makes a State print as its name in JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *State) UnmarshalText(text []byte) error {
	for i, n := range stateNames {
		if n == string(text) {
			*s = State(i)
			return nil
		}
	}
	return wire.Errorf(wire.Code_BAD_REQUEST, "%q is not the name of a migration's state", text)
}

// String is the event's name.
func (e Event) String() string {
	if e < eventCount {
		return eventNames[e]
	}
	return fmt.Sprintf("Event(%d)", uint8(e))
}

// StateOf is the state that the log's phase of a migration amounts to, for a
// reader that did not run it: a begun one is at least Preparing, a pivoted one
// is at least Verifying.
func StateOf(p wire.Phase) State {
	switch p {
	case wire.Phase_PHASE_BEGUN:
		return Preparing
	case wire.Phase_PHASE_PIVOTED:
		return Verifying
	case wire.Phase_PHASE_COMPLETED:
		return Completed
	case wire.Phase_PHASE_ABORTED:
		return Aborted
	case wire.Phase_PHASE_FAILED:
		return Failed
	}
	return Idle
}
