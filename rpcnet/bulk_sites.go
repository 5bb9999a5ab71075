package rpcnet

import "time"

// site is where a session's byte streams go, and what they show there.
type site struct {
	addr  string // the node to connect to
	relay bool   // it forwards to the node with id to
	to    string
	token string
	epoch uint64
}

// site is where the session is served; the zero value: nowhere just now.
func (c *core) site() site {
	r := c.serving
	if c.ended != nil || r == nil || c.frozen || c.token == "" {
		return site{}
	}
	s := site{addr: r.addr, relay: r.relay, token: c.token, epoch: c.epoch}
	if r.relay {
		s.to = c.owner.GetId()
	}
	return s
}

// byteStreams are the byte streams of a session. The runner's mutex guards them.
type byteStreams struct {
	all     map[*ByteStream]struct{}
	next    uint64
	site    site
	changed chan struct{} // closed, and made anew, when site changes
}

func newByteStreams() byteStreams {
	return byteStreams{all: map[*ByteStream]struct{}{}, changed: make(chan struct{})}
}

// update takes where the session is now. What a stream has to another place is cut:
// a former owner may not know yet that it is one.
func (t *byteStreams) update(now site) {
	if now == t.site {
		return
	}
	t.site = now
	close(t.changed)
	t.changed = make(chan struct{})
	if now.addr == "" {
		return // frozen, or lost: the owner ends what it has to
	}
	for b := range t.all {
		b.movedTo(now)
	}
}

// end ends all streams with the session.
func (t *byteStreams) end(why error) {
	for b := range t.all {
		b.end(why)
	}
}

// addStream numbers a stream and starts it.
func (s *Session) addStream(b *ByteStream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.core.ended != nil {
		return s.core.ended
	}
	s.bulk.next++
	b.id = s.bulk.next
	s.bulk.all[b] = struct{}{}
	s.client.wg.Go(func() {
		b.run()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.bulk.all, b)
	})
	return nil
}

// awaitSite returns where to connect: at once if the session is elsewhere than
// last, else after wait. ok is false when the stream has ended.
func (b *ByteStream) awaitSite(last site, wait time.Duration) (s site, ok bool) {
	waited := make(chan struct{})
	t := b.r.cfg.Clock.AfterFunc(wait, func() { close(waited) })
	defer t.Stop()
	for {
		b.r.mu.Lock()
		s, changed := b.r.bulk.site, b.r.bulk.changed
		b.r.mu.Unlock()
		again := waited
		switch {
		case s.addr == "":
			again = nil // wherever it will be, waiting is not what is missing
		case s != last:
			return s, b.ctx.Err() == nil
		}
		select {
		case <-again:
			return s, true
		case <-changed:
		case <-b.ctx.Done():
			return site{}, false
		}
	}
}
