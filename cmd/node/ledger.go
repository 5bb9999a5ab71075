package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/baton-cluster/baton"
)

// Kinds of operations in a ledger. Each session has one counter and one
// register; both only ever grow, which is what lets a checker judge a long
// history in one pass.
const (
	kindIncr  = "incr"  // counter + 1; Value is the counter after it
	kindPut   = "put"   // register := Value, one writer, rising
	kindCount = "count" // reads the counter
	kindGet   = "get"   // reads the register
	kindPush  = "push"  // asks for a durable push that carries Value
)

const (
	keyCounter  = "n"
	keyRegister = "p"
)

// Op is one call of one client and what became of it. Times are microseconds
// of the client's monotonic clock since the ledger began.
type Op struct {
	Session  string `json:"session"`
	Kind     string `json:"kind"`
	StartUS  int64  `json:"start_us"`
	EndUS    int64  `json:"end_us"`
	Acked    bool   `json:"acked"`
	Code     string `json:"code,omitempty"` // why it was not acknowledged
	Value    int64  `json:"value"`
	Epoch    uint64 `json:"epoch,omitempty"`
	Seq      uint64 `json:"seq,omitempty"`
	Index    uint64 `json:"index,omitempty"` // change position that the reply saw
	Owner    string `json:"owner,omitempty"` // name of the node that served it
	Attempts int    `json:"attempts,omitempty"`
}

func (o *Op) write() bool { return o.Kind == kindIncr || o.Kind == kindPut || o.Kind == kindPush }

// Delivery is one push that a client received.
type Delivery struct {
	Session string `json:"session"`
	Seq     uint64 `json:"seq"`
	Epoch   uint64 `json:"epoch"`
	Value   int64  `json:"value"`
}

// MoveSeen is one change of owner as a client lived through it.
type MoveSeen struct {
	Session string `json:"session"`
	Epoch   uint64 `json:"epoch"`
	From    string `json:"from"`
	To      string `json:"to"`
	Planned bool   `json:"planned"`
	PauseUS int64  `json:"pause_us"`
}

// SessionKey lets a checker read a session again. A file with one is as secret
// as the sessions are.
type SessionKey struct {
	Session string `json:"session"`
	Secret  string `json:"secret"`
	Shared  bool   `json:"shared,omitempty"`
}

// Ledger collects what clients saw. Its methods may be called from any
// goroutine.
type Ledger struct {
	begun time.Time

	mu         sync.Mutex
	keys       []SessionKey
	ops        []Op
	deliveries []Delivery
	moves      []MoveSeen
	acked      int
	failed     int
	// latest is the newest epoch in a reply, and its node, by session.
	latest map[string]seenOwner
}

type seenOwner struct {
	epoch uint64
	owner string
}

func newLedger() *Ledger {
	return &Ledger{begun: time.Now(), latest: map[string]seenOwner{}}
}

// now is the ledger's time in microseconds.
func (l *Ledger) now() int64 { return time.Since(l.begun).Microseconds() }

func (l *Ledger) addKey(k SessionKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keys = append(l.keys, k)
}

func (l *Ledger) addOp(o Op) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ops = append(l.ops, o)
	if !o.Acked {
		l.failed++
		return
	}
	l.acked++
	if o.Epoch > l.latest[o.Session].epoch {
		l.latest[o.Session] = seenOwner{o.Epoch, o.Owner}
	}
}

func (l *Ledger) addDelivery(d Delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deliveries = append(l.deliveries, d)
}

func (l *Ledger) addMove(m MoveSeen) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.moves = append(l.moves, m)
}

// ackedOps is how many operations were acknowledged so far.
func (l *Ledger) ackedOps() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

// failedOps is how many operations ended in an error so far.
func (l *Ledger) failedOps() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// owned returns the sessions whose newest reply came from node, each with the
// epoch of that reply.
func (l *Ledger) owned(node string) map[string]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string]uint64{}
	for id, s := range l.latest {
		if s.owner == node {
			out[id] = s.epoch
		}
	}
	return out
}

// movedOn reports how many of sessions have answered under a later epoch.
func (l *Ledger) movedOn(sessions map[string]uint64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for id, epoch := range sessions {
		if l.latest[id].epoch > epoch {
			n++
		}
	}
	return n
}

// undelivered counts acknowledged pushes that no client has received yet.
func (l *Ledger) undelivered() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := map[string]map[int64]bool{}
	for _, d := range l.deliveries {
		if got[d.Session] == nil {
			got[d.Session] = map[int64]bool{}
		}
		got[d.Session][d.Value] = true
	}
	n := 0
	for i := range l.ops {
		if o := &l.ops[i]; o.Kind == kindPush && o.Acked && !got[o.Session][o.Value] {
			n++
		}
	}
	return n
}

// history is a copy of what was collected so far.
func (l *Ledger) history() History {
	l.mu.Lock()
	defer l.mu.Unlock()
	return History{
		Keys:       append([]SessionKey(nil), l.keys...),
		Ops:        append([]Op(nil), l.ops...),
		Deliveries: append([]Delivery(nil), l.deliveries...),
		Moves:      append([]MoveSeen(nil), l.moves...),
	}
}

// do makes one call and enters it, whatever comes of it.
func (l *Ledger) do(session, kind string, call func() (value int64, r baton.Reply, err error)) error {
	op := Op{Session: session, Kind: kind, StartUS: l.now()}
	value, r, err := call()
	op.EndUS = l.now()
	op.Value = value
	if err != nil {
		op.Code = baton.CodeOf(err).Label()
		if errors.Is(err, context.Canceled) { // by the end of the load
			op.Code = "cancelled"
		}
	} else {
		op.Acked = true
		op.Epoch, op.Seq, op.Index, op.Owner, op.Attempts = r.Epoch, r.Seq, r.Change, r.Node, r.Attempts
	}
	l.addOp(op)
	return err
}

// ledgerLine is one line of a ledger file: exactly one field is set.
type ledgerLine struct {
	Key      *SessionKey `json:"key,omitempty"`
	Op       *Op         `json:"op,omitempty"`
	Delivery *Delivery   `json:"delivery,omitempty"`
	Move     *MoveSeen   `json:"move,omitempty"`
}

// save writes the ledger to a file that only its owner may read.
func (l *Ledger) save(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	h := l.history()
	var faults []error
	put := func(line ledgerLine) { faults = append(faults, enc.Encode(line)) }
	for i := range h.Keys {
		put(ledgerLine{Key: &h.Keys[i]})
	}
	for i := range h.Ops {
		put(ledgerLine{Op: &h.Ops[i]})
	}
	for i := range h.Deliveries {
		put(ledgerLine{Delivery: &h.Deliveries[i]})
	}
	for i := range h.Moves {
		put(ledgerLine{Move: &h.Moves[i]})
	}
	faults = append(faults, w.Flush(), f.Close())
	return errors.Join(faults...)
}

// ledgerLineBytesMax bounds a line of a ledger file.
const ledgerLineBytesMax = 64 << 10

// readLedger reads what save wrote.
func readLedger(r io.Reader) (History, error) {
	var h History
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, ledgerLineBytesMax)
	for n := 1; sc.Scan(); n++ {
		var line ledgerLine
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			return h, fmt.Errorf("ledger line %d: %w", n, err)
		}
		switch {
		case line.Key != nil:
			h.Keys = append(h.Keys, *line.Key)
		case line.Op != nil:
			h.Ops = append(h.Ops, *line.Op)
		case line.Delivery != nil:
			h.Deliveries = append(h.Deliveries, *line.Delivery)
		case line.Move != nil:
			h.Moves = append(h.Moves, *line.Move)
		default:
			return h, fmt.Errorf("ledger line %d: neither key, op, delivery nor move", n)
		}
	}
	return h, sc.Err()
}
