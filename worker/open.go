package worker

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/migrate"
	"github.com/baton-cluster/baton/store"
	"github.com/baton-cluster/baton/wire"
)

// openGrace is how long, in log time, an Open may wander before the log refuses
// it. Closed sessions are remembered that long (S10).
const openGrace = 60 * time.Second

// serveOpen opens a session owned by this worker and attaches the client.
func (w *Worker) serveOpen(link Link, f *wire.OpenReq) {
	if err := w.checkOpen(f); err != nil {
		bye(link, err)
		return
	}
	if w.unavailable(link) {
		return
	}
	ttl := f.GetTtlUs()
	if ttl == 0 {
		ttl = uint64(wire.TTLDefault / time.Microsecond)
	}
	res, err := w.proposeOpen(&wire.OpenSession{
		Session: f.GetSession(), Nonce: f.GetNonce(), SecretHash: HashSecret(f.GetSecret()), TtlUs: ttl,
		Shared: f.GetShared(), Owner: w.ownerOfNew(f.GetSession()), By: "client",
	})
	if err != nil {
		bye(link, err)
		return
	}
	switch code := res.GetCode(); code {
	case wire.Code_OK:
		row := res.GetRow()
		if !secretMatches(f.GetSecret(), &wire.Location{SecretHash: row.GetSecretHash()}) {
			link.Bye(wire.Code_BAD_SECRET, "the session was opened with another secret")
			return
		}
		req := &wire.AttachReq{Session: f.GetSession(), Instance: f.GetInstance(), Secret: f.GetSecret(), Fresh: true}
		if row.GetOwner().GetIncarnation() != w.Incarnation() {
			// This node drains; or a repeated Open, whose first answer was lost: the
			// session has an owner, or had.
			w.serveAttach(link, req)
			return
		}
		w.attachAt(link, req, &wire.Location{Found: true, SecretHash: row.GetSecretHash(), Owner: row.GetOwner(), Epoch: row.GetEpoch(), Valid: true})
	case wire.Code_STALE_INCARNATION:
		w.checkIncarnation(w.Incarnation())
		link.Bye(wire.Code_RETRY, "the node that was to own it was fenced: ask again")
	case wire.Code_OPEN_TOO_LATE: // the deadline was this node's own choice
		link.Bye(wire.Code_RETRY, "the log took too long: ask again")
	case wire.Code_SESSION_EXISTS:
		link.Bye(code, "a session of this id is there already: resume it, or choose another id")
	default:
		link.Bye(code, refusal(code))
	}
}

func (w *Worker) checkOpen(f *wire.OpenReq) error {
	if err := checkIDs(f.GetSession(), f.GetInstance()); err != nil {
		return err
	}
	ttl := time.Duration(f.GetTtlUs()) * time.Microsecond
	switch {
	case len(f.GetSecret()) != wire.SecretBytes:
		return wire.Errorf(wire.Code_BAD_REQUEST, "a secret has %d bytes", wire.SecretBytes)
	case len(f.GetNonce()) != wire.IDBytes:
		return wire.Errorf(wire.Code_BAD_REQUEST, "a nonce has %d bytes", wire.IDBytes)
	case f.GetTtlUs() > uint64(wire.TTLMax/time.Microsecond), ttl != 0 && ttl < wire.TTLMin:
		return wire.Errorf(wire.Code_BAD_REQUEST, "a ttl is between %v and %v", wire.TTLMin, wire.TTLMax)
	}
	return nil
}

// proposeOpen gives an Open its deadline and brings it to the log. The log time
// that this node knows may be that of long ago: in a cluster where nothing is due
// only the next entry brings it forward. So an Open that comes too late by it is
// proposed once more, by the time that the log itself has told.
func (w *Worker) proposeOpen(o *wire.OpenSession) (*wire.Result, error) {
	ctx, cancel := context.WithTimeout(w.ctx, askTime)
	defer cancel()
	var known uint64
	w.cfg.View(func(st *store.Store) { known = st.TimeUS() })
	for again := false; ; again = true {
		o := proto.CloneOf(o) // the log may still hold the one before
		o.DeadlineUs = known + uint64(openGrace/time.Microsecond)
		res, err := w.proposeWait(ctx, &wire.Command{Kind: &wire.Command_Open{Open: o}})
		if err != nil {
			return nil, err
		}
		if res[0].GetCode() != wire.Code_OPEN_TOO_LATE || again {
			return res[0], nil
		}
		known = res[0].GetTimeUs()
	}
}

// ownerOfNew is who owns a new session: this worker, or another while this one drains.
// (A relay can then bring the client there, who could not open it there.)
func (w *Worker) ownerOfNew(session string) *wire.Owner {
	owner := w.owner()
	w.cfg.View(func(st *store.Store) {
		if st.Worker(w.cfg.ID).GetState() != wire.WorkerState_WORKER_STATE_DRAINING {
			return
		}
		workers := st.Workers()
		candidates := make([]migrate.Candidate, len(workers))
		for i, r := range workers {
			candidates[i] = migrate.Candidate{
				ID: r.GetId(), Incarnation: r.GetIncarnation(), Capacity: r.GetCapacity(),
				Eligible: r.GetState() == wire.WorkerState_WORKER_STATE_ACTIVE,
			}
		}
		if i, ok := migrate.Place(session, candidates, migrate.PlacementFactor); ok {
			owner = &wire.Owner{Worker: workers[i].GetId(), Incarnation: workers[i].GetIncarnation()}
		}
	})
	return owner
}
