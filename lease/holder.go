package lease

import (
	"cmp"
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// renewalsMax bounds the renewals whose answers a Holder waits for: more than
// are sent to the voters of one configuration in 2T.
const renewalsMax = 256

// Renewal is a request to one server for a promise.
type Renewal struct {
	Server      string
	Incarnation uint64
	Nonce       uint64
	T           time.Duration
	Config      uint64 // index of the voter configuration that it counts in
}

// Grant is a server's answer to a Renewal.
type Grant struct {
	Server string
	Nonce  uint64
	T      time.Duration
	// Code is OK: promised; LEASE_BEHIND or LEASE_OTHER_CONFIG: ask again later;
	// LEASE_WITHDRAWN or WORKER_FENCED: the incarnation is over.
	Code wire.Code
	// Leads: the server leads, and was in touch with a majority within T.
	Leads bool
}

// Over reports whether the answer ends the incarnation (L5). A server that is
// behind, or of other voters, must not strand a healthy worker.
func (g Grant) Over() bool {
	return g.Code == wire.Code_LEASE_WITHDRAWN || g.Code == wire.Code_WORKER_FENCED
}

// sent is a Renewal on its way.
type sent struct {
	Renewal
	at time.Duration
}

// granted is the latest promise of one server.
type granted struct {
	at time.Duration // when the renewal was sent
	t  time.Duration
}

// Holder is a worker's side of its lease. The zero value holds none. Not safe
// for concurrent use.
type Holder struct {
	incarnation uint64
	config      uint64
	voters      []string
	nonce       uint64
	waiting     []sent // by rising nonce
	// grants are of config's voters, for incarnation.
	grants map[string]granted
	// until is D. Invariant: it only rises within an incarnation. (What was
	// granted in an earlier configuration holds on: no fence is appended for
	// VoterWait after a change.)
	until time.Duration
	held  bool
	// leader is when a renewal was sent that a leader answered.
	leader time.Duration
}

// Begin makes h hold nothing for a new incarnation. 0: none.
func (h *Holder) Begin(incarnation uint64, now time.Duration) {
	nonce := h.nonce
	*h = Holder{incarnation: incarnation, nonce: nonce, leader: now}
}

// Incarnation is the one that h renews for; 0: none.
func (h *Holder) Incarnation() uint64 { return h.incarnation }

// SetVoters tells the voter configuration that the worker has applied. Grants
// are counted in one configuration only.
func (h *Holder) SetVoters(config uint64, voters []string) {
	if config == h.config && h.grants != nil {
		return
	}
	h.config, h.voters = config, slices.Clone(voters)
	h.grants = make(map[string]granted, len(voters))
}

// Renew returns a renewal for each voter, sent now; none without an incarnation.
// If no leader has been heard for SilenceLeases·t, it asks for no promise (T is 0)
// but for a leader (L6): a lease without a log is useless, and would freeze its
// sessions for ever.
func (h *Holder) Renew(now, t time.Duration) []Renewal {
	if h.incarnation == 0 {
		return nil
	}
	if h.Silent(now, t) {
		t = 0
	}
	out := make([]Renewal, 0, len(h.voters))
	for _, v := range h.voters {
		out = append(out, h.renew(v, now, t))
	}
	return out
}

func (h *Holder) renew(server string, now, t time.Duration) Renewal {
	h.nonce++
	r := Renewal{Server: server, Incarnation: h.incarnation, Nonce: h.nonce, T: t, Config: h.config}
	if len(h.waiting) >= renewalsMax {
		h.waiting = slices.Delete(h.waiting, 0, len(h.waiting)-renewalsMax+1)
	}
	h.waiting = append(h.waiting, sent{r, now})
	return r
}

// Silent reports that no leader in touch with a majority has answered for
// SilenceLeases·t.
func (h *Holder) Silent(now, t time.Duration) bool { return now-h.leader > SilenceLeases*t }

// Receive takes an answer. It reports whether the incarnation is over: the
// worker must stop serving it, and register again.
func (h *Holder) Receive(g Grant) (over bool) {
	i, ok := slices.BinarySearchFunc(h.waiting, g.Nonce, func(s sent, nonce uint64) int {
		return cmp.Compare(s.Nonce, nonce)
	})
	if !ok || h.waiting[i].Server != g.Server {
		return false // answered already, or of an earlier incarnation
	}
	s := h.waiting[i]
	h.waiting = slices.Delete(h.waiting, i, i+1)
	if g.Over() {
		h.Begin(0, s.at)
		return true
	}
	if g.Leads {
		h.leader = max(h.leader, s.at)
	}
	if g.Code == wire.Code_OK && s.T > 0 && g.T == s.T && s.Config == h.config {
		if old, ok := h.grants[g.Server]; !ok || s.at+Shrink(s.T) > old.at+Shrink(old.t) {
			h.grants[g.Server] = granted{s.at, s.T}
		}
		h.count()
	}
	return false
}

// count works out D: the time until which a majority's promises hold (L1).
func (h *Holder) count() {
	ends := make([]time.Duration, 0, len(h.voters))
	for _, v := range h.voters {
		if g, ok := h.grants[v]; ok {
			ends = append(ends, g.at+Shrink(g.t)-Margin)
		}
	}
	need := Majority(len(h.voters))
	if len(ends) < need {
		return
	}
	slices.Sort(ends)
	until := ends[len(ends)-need]
	if !h.held || until > h.until {
		h.until, h.held = until, true
	}
}

// Until is D, when the lease ends; not ok: there is none. The lease of an
// earlier configuration counts.
func (h *Holder) Until() (d time.Duration, ok bool) { return h.until, h.held }

// Left is how long the lease still lasts at now, which must have been read
// after the request arrived that is to be served by it.
func (h *Holder) Left(incarnation uint64, now time.Duration) (left time.Duration, ok bool) {
	if !h.held || incarnation == 0 || incarnation != h.incarnation || now >= h.until {
		return 0, false
	}
	return h.until - now, true
}

// Majority is how many of n voters decide.
func Majority(n int) int { return n/2 + 1 }
