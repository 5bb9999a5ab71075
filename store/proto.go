package store

import "github.com/baton-cluster/baton/wire"

// The proto methods make fresh messages. Byte slices are shared with the tables,
// where they are immutable.

func (r *row) proto() *wire.SessionRow {
	p := &wire.SessionRow{
		Id:             r.id,
		SecretHash:     r.secretHash,
		TtlUs:          r.ttlUS,
		Shared:         r.shared,
		OpenNonce:      r.nonce,
		OpenDeadlineUs: r.openDeadlineUS,
		Owner:          r.owner.proto(),
		Epoch:          r.epoch,
		AttachHigh:     r.attachHigh,
		ExpiresUs:      r.expiresUS,
		PushNext:       r.pushNext,
		Change:         r.change,
		Migration:      r.migration,
		Bytes:          r.bytes,
	}
	for _, a := range r.attachments {
		p.Attachments = append(p.Attachments, &wire.Attachment{Number: a.number, Client: []byte(a.client)})
	}
	if len(r.state) > 0 {
		changes := make([]wire.Change, len(r.state)) // one allocation for all
		p.State = make([]*wire.Change, len(r.state))
		for i, e := range r.state {
			changes[i].Key, changes[i].Value = e.key, e.value
			p.State[i] = &changes[i]
		}
	}
	for i := range r.windows {
		p.Clients = append(p.Clients, r.windows[i].proto())
	}
	for _, q := range r.outbox {
		p.Outbox = append(p.Outbox, &wire.Push{Seq: q.seq, Payload: q.payload})
	}
	for i := range r.history {
		p.History = append(p.History, r.history[i].proto())
	}
	return p
}

func (w *window) proto() *wire.ClientWindow {
	p := &wire.ClientWindow{
		Client: []byte(w.client), Last: w.last, Ack: w.ack, PushAck: w.pushAck, Attached: w.attached,
	}
	for i := range w.replies {
		p.Replies = append(p.Replies, &wire.CachedReply{Reply: w.replies[i].proto(), Digest: w.replies[i].digest})
	}
	return p
}

func (c *ownerChange) proto() *wire.OwnerChange {
	return &wire.OwnerChange{
		Epoch: c.epoch, Owner: c.owner.proto(), From: c.from, Index: c.index, WallUs: c.wallUS,
		Reason: c.reason, By: c.by, Migration: c.migration, PauseUs: c.pauseUS,
	}
}

func ownerChangeOf(p *wire.OwnerChange) ownerChange {
	return ownerChange{
		epoch: p.GetEpoch(), owner: ownerOf(p.GetOwner()), from: p.GetFrom(), index: p.GetIndex(),
		wallUS: p.GetWallUs(), reason: p.GetReason(), by: p.GetBy(), migration: p.GetMigration(),
		pauseUS: p.GetPauseUs(),
	}
}

func (w *worker) proto() *wire.WorkerRow {
	return &wire.WorkerRow{
		Id: w.id, Name: w.name, Incarnation: w.incarnation, Nonce: w.nonce, Endpoint: w.endpoint(),
		Zone: w.zone, Capacity: w.capacity, State: w.state, UntilRegister: w.untilRegister,
		Version: w.version, Reason: w.reason, Job: w.job, Place: w.place.proto(),
	}
}

func (w *worker) endpoint() *wire.Endpoint {
	return &wire.Endpoint{Host: w.host, UserPort: w.userPort, MgmtPort: w.mgmtPort}
}

func workerOf(p *wire.WorkerRow) *worker {
	return &worker{
		id: p.GetId(), name: p.GetName(), incarnation: p.GetIncarnation(), nonce: p.GetNonce(),
		host:     p.GetEndpoint().GetHost(),
		userPort: p.GetEndpoint().GetUserPort(),
		mgmtPort: p.GetEndpoint().GetMgmtPort(),
		zone:     p.GetZone(), capacity: p.GetCapacity(), state: p.GetState(),
		untilRegister: p.GetUntilRegister(), version: p.GetVersion(), reason: p.GetReason(), job: p.GetJob(),
		place: placeOf(p.GetPlace()),
	}
}

func (m *migration) proto() *wire.Migration {
	return &wire.Migration{
		Id: m.id, Nonce: m.nonce, Session: m.session, Source: m.source.proto(), Target: m.target.proto(),
		SourceEpoch: m.sourceEpoch, TargetEpoch: m.targetEpoch, TokenHash: m.tokenHash,
		DeadlineUs: m.deadlineUS, Phase: m.phase, Reason: m.reason, Priority: m.priority, By: m.by,
		Why: m.why, Digest: m.digest, BegunUs: m.begunUS, EndedUs: m.endedUS, PauseUs: m.pauseUS,
		WallUs: m.wallUS, Job: m.job, ConfirmedBy: m.confirmedBy, Metadata: labels(m.metadata),
	}
}

func migrationOf(p *wire.Migration) *migration {
	return &migration{
		id: p.GetId(), nonce: p.GetNonce(), session: p.GetSession(), source: ownerOf(p.GetSource()),
		target: ownerOf(p.GetTarget()), sourceEpoch: p.GetSourceEpoch(), targetEpoch: p.GetTargetEpoch(),
		tokenHash: p.GetTokenHash(), deadlineUS: p.GetDeadlineUs(), phase: p.GetPhase(),
		reason: p.GetReason(), priority: p.GetPriority(), by: p.GetBy(), why: p.GetWhy(),
		digest: p.GetDigest(), begunUS: p.GetBegunUs(), endedUS: p.GetEndedUs(), pauseUS: p.GetPauseUs(),
		wallUS: p.GetWallUs(), job: p.GetJob(), confirmedBy: p.GetConfirmedBy(), metadata: notesOf(p.GetMetadata()),
	}
}

func labels(list []note) (out []*wire.Label) {
	for _, n := range list {
		out = append(out, &wire.Label{Key: n.key, Value: n.value})
	}
	return out
}

func notesOf(list []*wire.Label) (out []note) {
	for _, l := range list {
		out = append(out, note{l.GetKey(), l.GetValue()})
	}
	return out
}

func (c *closed) proto() *wire.Closed {
	return &wire.Closed{Session: c.session, Nonce: []byte(c.nonce), UntilUs: c.untilUS, Why: c.why}
}

func closedOf(p *wire.Closed) *closed {
	return &closed{
		session: p.GetSession(), nonce: string(p.GetNonce()), untilUS: p.GetUntilUs(), why: p.GetWhy(),
	}
}
