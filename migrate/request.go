package migrate

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/baton-cluster/baton/wire"
)

const (
	// PriorityDefault is what a request without a priority gets.
	PriorityDefault = wire.PriorityDefault
	// PriorityMax is the last to be served; 1 is the first.
	PriorityMax = wire.PriorityMax
	// DeadlineMin: below it not even one round of calls is sure to fit.
	DeadlineMin = 100 * time.Millisecond
	// DeadlineMax bounds how long a client may be left warming a connection.
	DeadlineMax = 10 * time.Minute
	// ByBytesMax bounds the requester's name: it is kept in the session's history.
	ByBytesMax = 128
	// targetBytesMax bounds a worker's id or name in a request.
	targetBytesMax = 128
)

// Request asks for one session to be moved.
type Request struct {
	Session string
	// Target is the id or the name of the worker to move to. Empty: the
	// director places the session.
	Target string
	Reason wire.Reason
	// Priority is 1 (first) to PriorityMax; 0 means PriorityDefault.
	Priority uint32
	// Deadline is how long the move may take from its beginning, DeadlineMin to
	// DeadlineMax; 0 means the director's MigrationTimeout.
	Deadline time.Duration
	// By says who asks, for the session's history.
	By string
	// Job is the drain or rebalance that it belongs to, 0: none.
	Job uint64
	// Metadata are the requester's notes, by rising key; see wire.CheckMetadata.
	Metadata []*wire.Label
}

// Validate names all faults of r at once, as one BAD_REQUEST.
func (r *Request) Validate() error {
	var faults []string
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	if err := wire.CheckSessionID(r.Session); err != nil {
		add("session: %v", err)
	}
	if len(r.Target) > targetBytesMax || !printable(r.Target) {
		add("target: a worker's id or name has at most %d printable bytes", targetBytesMax)
	}
	if _, known := wire.Reason_name[int32(r.Reason)]; !known || r.Reason == wire.Reason_REASON_UNSPECIFIED {
		add("reason: %v is none; name one of the listed reasons", r.Reason)
	}
	if r.Priority > PriorityMax {
		add("priority: %d is not in 1 to %d", r.Priority, PriorityMax)
	}
	if r.Deadline != 0 && (r.Deadline < DeadlineMin || r.Deadline > DeadlineMax) {
		add("deadline: %v is not in %v to %v", r.Deadline, DeadlineMin, DeadlineMax)
	}
	if len(r.By) > ByBytesMax || !printable(r.By) {
		add("by: the requester's name has at most %d printable bytes", ByBytesMax)
	}
	if err := wire.CheckMetadata(r.Metadata); err != nil {
		add("metadata: %s", asError(err).Message)
	}
	if len(faults) == 0 {
		return nil
	}
	return wire.Errorf(wire.Code_BAD_REQUEST, "migration request: %s", strings.Join(faults, "; "))
}

func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
