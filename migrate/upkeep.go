package migrate

import (
	"time"

	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// expiryTickMin is how often at most log time is committed for no other reason
// than that a deadline has passed.
const expiryTickMin = time.Second

// upkeep is what the director does besides moving. Of each kind, one batch is
// under way at a time: the log's pace is its pace.
type upkeep struct {
	order   uint64
	batches [][]proposal

	suspects map[string]*suspect
	claims   map[string]claim
	met      map[string]met
	looked   bool          // the workers were looked at in this term
	lease    time.Duration // T, as of the last scan
	*counts

	assigning bool
	// attachedAfter and detachedAfter are where the next batch of either kind
	// starts.
	attachedAfter, detachedAfter string
	expiring                     bool
	ticking                      bool
	tickedAt                     time.Duration
	ticked                       bool
}

// planAssign gives the next batch of ownerless sessions their owners. Those that
// had a client come first, each batch right after the one before: clients wait.
// The others follow when none of those is left, a batch a scan. nowUS is log time.
func (r *run) planAssign(nowUS uint64, s *store.Store) {
	k := &r.keep
	if k.assigning || nowUS < s.AssignAfterUS() {
		return
	}
	after, limit := &k.attachedAfter, r.cfg.AttachedBatch
	lost := s.OwnerlessAttached(*after, limit)
	waited := len(lost) > 0 || *after != ""
	if !waited {
		after, limit = &k.detachedAfter, r.cfg.AssignBatch
		lost = s.Ownerless(*after, limit)
	}
	// A short batch was the last of this round; the next starts at the beginning
	// and finds what came since, or was refused.
	*after = ""
	if len(lost) == limit {
		*after = lost[len(lost)-1].ID
	}
	if len(lost) == 0 {
		return
	}
	batch := r.assignments(s, lost)
	more := *after != "" || waited
	k.assigning = r.enqueue(batch, func(err error) {
		k.assigning = false
		if err != nil {
			return // the log may have no room: not before the next scan
		}
		r.scanSoon = r.scanSoon || more
		if waited {
			nowUS := r.cfg.NowUS()
			r.cfg.View(func(s *store.Store) { r.planAssign(nowUS, s) })
			r.upkeepFlush()
		}
	})
}

// assignments places sessions that have no valid owner.
func (r *run) assignments(s *store.Store, lost []store.Summary) []proposal {
	p := newPlacer(s, r.cfg.Alive, nil)
	p.policy = r.cfg.Placement
	if err := p.err(); err != nil {
		r.fault("sessions without an owner cannot be given one", err)
		return nil
	}
	batch := make([]proposal, 0, len(lost))
	for i := range lost {
		if to := p.reassign(&lost[i]); to != nil {
			batch = append(batch, proposal{assignCommand(s, &lost[i], to, r.by()), func(res *wire.Result, err error) {
				if err == nil {
					r.cfg.times.assigned(lost[i], res)
				}
			}})
		}
	}
	return batch
}

// planExpire proposes the end of the next batch of sessions past their TTL.
func (r *run) planExpire(s *store.Store) {
	k := &r.keep
	if k.expiring {
		return
	}
	past := s.Expired(r.cfg.ExpireBatch)
	batch := make([]proposal, 0, len(past))
	removed := 0
	for i := range past {
		cmd := &wire.Command{Kind: &wire.Command_Expire{Expire: &wire.Expire{Session: past[i].ID, Epoch: past[i].Epoch}}}
		batch = append(batch, proposal{cmd, func(res *wire.Result, err error) {
			if err == nil && res.GetCode() == wire.Code_OK {
				removed++
			}
		}})
	}
	k.expiring = r.enqueue(batch, func(error) {
		k.expiring = false
		r.scanSoon = r.scanSoon || removed == r.cfg.ExpireBatch
	})
}

// planTick commits log time if a deadline is pending and nothing else has moved
// it for TickEvery, or if the deadline has passed by now.
func (r *run) planTick(now time.Duration, nowUS uint64, s *store.Store) {
	k := &r.keep
	at, pending := s.NextDeadline()
	drop, keys := s.KeysUntil() // a week away: it keeps nobody awake, and is not missed
	if k.ticking || !pending && !keys || nowUS <= s.TimeUS() {
		return
	}
	stale := pending && nowUS-s.TimeUS() >= uint64(r.cfg.TickEvery/time.Microsecond)
	passed := pending && at > s.TimeUS() && at <= nowUS || keys && drop <= nowUS
	if k.ticked && now-k.tickedAt < min(expiryTickMin, r.cfg.TickEvery) || !stale && !passed {
		return
	}
	k.tickedAt, k.ticked = now, true
	cmd := &wire.Command{Kind: &wire.Command_Tick{Tick: &wire.Tick{}}}
	k.ticking = r.enqueue([]proposal{{cmd, ignoreResult}}, func(error) {
		k.ticking = false
		r.scanSoon = true
	})
}

// enqueue has batch proposed in one call after the scan, and after called when
// its results are in. It reports whether there is anything to wait for.
func (r *run) enqueue(batch []proposal, after func(err error)) bool {
	if len(batch) == 0 {
		return false
	}
	last := &batch[len(batch)-1]
	done := last.done
	last.done = func(res *wire.Result, err error) {
		done(res, err)
		if err != nil {
			r.fault("cannot commit a batch yet", err)
		}
		after(err)
	}
	r.keep.batches = append(r.keep.batches, batch)
	return true
}

// upkeepFlush proposes what the scan found, one call a kind, so that none waits
// for another's results.
func (r *run) upkeepFlush() {
	k := &r.keep
	for _, b := range k.batches {
		r.proposeAll(b)
	}
	k.batches = nil
}

// by is who the director is in a session's history.
func (r *run) by() string { return clip("director "+r.cfg.Self, ByBytesMax) }

func ignoreResult(*wire.Result, error) {}
