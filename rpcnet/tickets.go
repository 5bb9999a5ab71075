package rpcnet

import "crypto/tls"

// tickets is a cache of TLS sessions that takes and gives copies. quic-go
// writes to the state of a session that it resumes, and several connections
// may resume from one ticket at the same time.
type tickets struct{ kept tls.ClientSessionCache }

func newTickets(max int) tls.ClientSessionCache {
	return tickets{kept: tls.NewLRUClientSessionCache(max)}
}

func (t tickets) Get(key string) (*tls.ClientSessionState, bool) {
	kept, ok := t.kept.Get(key)
	if !ok {
		return nil, false
	}
	s := copyOfTicket(kept)
	return s, s != nil
}

func (t tickets) Put(key string, s *tls.ClientSessionState) {
	t.kept.Put(key, copyOfTicket(s))
}

// copyOfTicket returns nil for a ticket that is none, which a cache takes as
// the order to forget.
func copyOfTicket(s *tls.ClientSessionState) *tls.ClientSessionState {
	if s == nil {
		return nil
	}
	ticket, state, err := s.ResumptionState()
	if err != nil || state == nil {
		return nil
	}
	b, err := state.Bytes()
	if err != nil {
		return nil
	}
	if state, err = tls.ParseSessionState(b); err != nil {
		return nil
	}
	c, err := tls.NewResumptionState(ticket, state)
	if err != nil {
		return nil
	}
	return c
}
