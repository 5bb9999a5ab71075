package store

import (
	"slices"

	"github.com/baton-cluster/baton/wire"
)

// detachAll is for a change of owner: attachments belong to an epoch (S7). TTL
// starts now if the session was attached; if it was not, it runs on (S8).
func (s *Store) detachAll(r *row) {
	if r.attached() {
		r.expiresUS = saturate(s.timeUS, r.ttlUS)
	}
	r.attachments = nil
	r.attachHigh = 0
}

func (s *Store) applyAttach(c *wire.Attach, res *wire.Result) {
	r := s.gate(c.GetSession(), c.GetEpoch(), c.GetOwner(), res)
	if r == nil {
		return
	}
	client := string(c.GetClient())
	if client == "" || len(client) > wire.IDBytes || c.GetNumber() == 0 {
		res.Code = wire.Code_BAD_REQUEST
		return
	}
	// A delayed or repeated Attach must not undo a later Detach or Attach: only
	// a number above the highest seen opens anything (S7).
	if c.GetNumber() <= r.attachHigh {
		i, ok := r.attachmentOf(client)
		if !ok || r.attachments[i].number != c.GetNumber() {
			res.Code = wire.Code_NOT_ATTACHED
			return
		}
		res.Duplicate = true
		res.Epoch = r.epoch
		res.Row = r.proto()
		return
	}
	drop := ""
	if r.window(client) == nil {
		var ok bool
		switch drop, ok = r.windowToDrop(); {
		case !c.GetFresh():
			res.Code = wire.Code_CLIENT_GONE
			return
		case !ok:
			res.Code = wire.Code_TOO_MANY
			return
		}
	}
	r, keys := s.edit(r)
	if drop != "" {
		r.dropWindow(drop)
	}
	s.attach(r, client, c.GetNumber())
	s.touch(r, res)
	s.commit(r, keys)
	res.Epoch = r.epoch
	res.Row = r.proto()
}

// attach opens an attachment. In a session that is not shared it displaces
// whoever had one; an instance has one attachment at most.
func (s *Store) attach(r *row, client string, number uint64) {
	r.attachments = slices.DeleteFunc(r.attachments, func(a attachment) bool {
		return !r.shared || a.client == client
	})
	r.attachments = append(r.attachments, attachment{number, client})
	r.attachHigh = number
	r.expiresUS = 0
	w := r.window(client)
	if w == nil {
		r.addWindow(&s.h, window{client: client, attached: s.position})
		return
	}
	w.attached = s.position
	r.sealWindow(&s.h, w)
}

// windowToDrop chooses the window that gives way to a new one: none while there
// is room, else that of the instance which attached longest ago and will not be
// attached. Not ok: every one is attached.
func (r *row) windowToDrop() (client string, ok bool) {
	if len(r.windows) < wire.ClientWindowsMax {
		return "", true
	}
	var oldest *window
	for i := range r.windows {
		w := &r.windows[i]
		if r.shared && r.isAttached(w.client) {
			continue
		}
		if oldest == nil || w.attached < oldest.attached {
			oldest = w
		}
	}
	if oldest == nil {
		return "", false
	}
	return oldest.client, true
}

func (s *Store) applyDetach(c *wire.Detach, res *wire.Result) {
	r := s.gate(c.GetSession(), c.GetEpoch(), c.GetOwner(), res)
	if r == nil {
		return
	}
	i := slices.IndexFunc(r.attachments, func(a attachment) bool { return a.number == c.GetNumber() })
	if i < 0 {
		res.Duplicate = true
		return
	}
	r, keys := s.edit(r)
	r.attachments = slices.Delete(r.attachments, i, i+1)
	if !r.attached() {
		r.expiresUS = saturate(s.timeUS, r.ttlUS)
		r.shrink()
	}
	s.touch(r, res)
	s.commit(r, keys)
}
