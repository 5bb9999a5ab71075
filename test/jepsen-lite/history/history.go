// Package history records what clients did and saw, with the monotonic times
// between which each operation must have taken effect.
package history

import (
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
)

// Kind of operation.
type Kind string

const (
	Incr Kind = "incr" // Arg: delta; Ret: the new value
	Get  Kind = "get"  // Ret: the value, empty if absent
	Put  Kind = "put"  // Arg: the value
	CAS  Kind = "cas"  // Old, Arg: from, to; Ret: "true" or "false"
	Push Kind = "push" // Arg: the payload
)

// Outcome of an operation.
type Outcome string

const (
	OK Outcome = "ok"
	// Fail: it certainly had no effect.
	Fail Outcome = "fail"
	// Unknown: it had an effect at some time after its call, or none.
	Unknown Outcome = "unknown"
)

// Op is one operation of one client. Call and Return are nanoseconds since the
// run began; of an Unknown operation Return is when the client gave up, not when
// the effect must have been there.
type Op struct {
	Client  int     `json:"client"`
	Session string  `json:"session"`
	Key     string  `json:"key"`
	Kind    Kind    `json:"kind"`
	Old     string  `json:"old,omitempty"`
	Arg     string  `json:"arg,omitempty"`
	Ret     string  `json:"ret,omitempty"`
	Call    int64   `json:"call"`
	Return  int64   `json:"return"`
	Outcome Outcome `json:"outcome"`
	Error   string  `json:"error,omitempty"`

	// What the reply told of itself; zero unless OK.
	Epoch    uint64 `json:"epoch,omitempty"`
	Change   uint64 `json:"change,omitempty"`
	Node     string `json:"node,omitempty"`
	Attempts int    `json:"attempts,omitempty"`
	// Leased: the owner answered under a lease, and the client took the answer
	// at Taken, in nanoseconds since the run began.
	Leased bool  `json:"leased,omitempty"`
	Taken  int64 `json:"taken,omitempty"`
}

// ReadOnly reports whether the operation cannot write.
func (o *Op) ReadOnly() bool { return o.Kind == Get }

// Received is one push as a client got it.
type Received struct {
	Client  int    `json:"client"`
	Session string `json:"session"`
	Seq     uint64 `json:"seq"`
	Epoch   uint64 `json:"epoch"`
	Payload string `json:"payload"`
	At      int64  `json:"at"`
}

// Recorder collects a run's history. Its methods may be called concurrently.
type Recorder struct {
	start time.Duration // on the clock that the clients go by

	mu     sync.Mutex
	ops    []Op
	pushes []Received
}

// NewRecorder starts the run's clock.
func NewRecorder() *Recorder { return &Recorder{start: seam.OSClock{}.Now()} }

// Now is the time since the run began, in nanoseconds.
func (r *Recorder) Now() int64 { return r.At(seam.OSClock{}.Now()) }

// At is a time on the clients' clock as one since the run began.
func (r *Recorder) At(d time.Duration) int64 { return int64(d - r.start) }

// Add records a finished operation.
func (r *Recorder) Add(op Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, op)
}

// Push records a push that arrived now. Arrivals are kept in the order of calls.
func (r *Recorder) Push(p Received) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.At = r.Now()
	r.pushes = append(r.pushes, p)
}

// Ops returns a copy of what was recorded, in order of return.
func (r *Recorder) Ops() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Op(nil), r.ops...)
}

// Pushes returns a copy of the pushes, in order of arrival.
func (r *Recorder) Pushes() []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Received(nil), r.pushes...)
}

// BySession splits operations by session, keeping their order.
func BySession(ops []Op) map[string][]Op {
	out := map[string][]Op{}
	for _, o := range ops {
		out[o.Session] = append(out[o.Session], o)
	}
	return out
}
