package check

import (
	"fmt"

	"github.com/baton-cluster/baton/test/jepsen-lite/history"
)

// Leases checks the receiver's side of leases: no answer that was given under a
// lease is taken once a later epoch of the session, which began by a fence, has
// acknowledged anything to anybody. An operation's Return is when its answer was
// seen here, so no earlier than it was given; Taken is the very time.
func Leases(session string, changes []Change, ops []history.Op) []Violation {
	type epoch struct {
		n     uint64
		first int64 // answer
	}
	var fenced []epoch
	for _, c := range changes {
		if !c.Fenced {
			continue
		}
		e := epoch{n: c.Epoch}
		for i := range ops {
			if op := &ops[i]; op.Outcome == history.OK && op.Epoch == e.n && (e.first == 0 || op.Return < e.first) {
				e.first = op.Return
			}
		}
		if e.first > 0 {
			fenced = append(fenced, e)
		}
	}
	var out []Violation
	for i := range ops {
		op := &ops[i]
		if op.Outcome != history.OK || !op.Leased {
			continue
		}
		for _, e := range fenced {
			if op.Epoch < e.n && op.Taken > e.first {
				out = append(out, Violation{Check: "lease", Session: session, Detail: fmt.Sprintf(
					"client %d took an answer under a lease of epoch %d at %.3f s, though epoch %d, which began by a fence, had answered at %.3f s",
					op.Client, op.Epoch, float64(op.Taken)/1e9, e.n, float64(e.first)/1e9)})
				break
			}
		}
	}
	return ordered(out)
}
