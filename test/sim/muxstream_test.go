package sim

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

// muxWindow is what a stream's reader may be behind.
const muxWindow = 2 << 20

var errStreamClosed = errors.New("write on closed stream")

// muxStream is one end of a stream of a muxConn.
type muxStream struct {
	c        *muxConn
	peer     *muxStream
	mine     bool // this end opened it
	out      lane
	welcomed atomic.Bool

	mu     sync.Mutex
	cond   *sync.Cond
	ready  []byte
	held   int // bytes on their way here, or ready
	fin    bool
	reset  error // the far end gives up writing, or this one reading
	stop   error // the far end gives up reading, or this one writing
	closed bool  // for writing
	counts bool  // towards the opener's limit no more
	readBy time.Time
	readT  *time.Timer
}

func newMuxStream(c *muxConn) *muxStream {
	s := &muxStream{c: c}
	s.cond = sync.NewCond(&s.mu)
	s.out.c = c
	return s
}

func (s *muxStream) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cond.Broadcast()
}

func (s *muxStream) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch err := s.c.err(); {
		case s.reset != nil:
			return 0, s.reset
		case err != nil:
			return 0, err
		case past(s.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(s.ready) > 0:
			n := copy(b, s.ready)
			if s.ready = s.ready[n:]; len(s.ready) == 0 {
				s.ready = nil
			}
			s.held -= n
			s.cond.Broadcast()
			return n, nil
		case s.fin:
			s.doneLocked()
			return 0, io.EOF
		}
		s.cond.Wait()
	}
}

// doneLocked takes the stream off its connection's count once both directions have
// ended.
func (s *muxStream) doneLocked() {
	if s.counts || !(s.closed || s.stop != nil) || !(s.fin || s.reset != nil) {
		return
	}
	s.counts = true
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	delete(s.c.streams, s)
	if s.mine {
		s.c.open--
	}
}

func (s *muxStream) Write(b []byte) (int, error) {
	for done := 0; done < len(b); {
		part := b[done:min(len(b), done+muxWindow/4)]
		err := s.TryWriteAll(part)
		if errors.Is(err, quic.ErrWouldBlock) {
			s.peer.awaitRoom(s.c)
			continue
		}
		if err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(b), nil
}

// awaitRoom waits for the reader, or the writer's end.
func (s *muxStream) awaitRoom(writer *muxConn) {
	for {
		s.mu.Lock()
		full := s.held > muxWindow/2
		s.mu.Unlock()
		if !full {
			return
		}
		select {
		case <-writer.ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
		if s.peer.failed() != nil {
			return
		}
	}
}

// failed is why this end cannot write.
func (s *muxStream) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch err := s.c.err(); {
	case s.stop != nil:
		return s.stop
	case err != nil:
		return err
	case s.closed:
		return errStreamClosed
	}
	return nil
}

func (s *muxStream) TryWriteAll(b []byte) error {
	if err := s.failed(); err != nil {
		return err
	}
	p := s.peer
	p.mu.Lock()
	if p.held+len(b) > muxWindow {
		p.mu.Unlock()
		return quic.ErrWouldBlock
	}
	p.held += len(b)
	p.mu.Unlock()
	data := slices.Clone(b)
	s.out.send(func() {
		p.c.welcome(p)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.reset == nil {
			p.ready = append(p.ready, data...)
		} else {
			p.held -= len(data)
		}
		p.cond.Broadcast()
	})
	return nil
}

func (s *muxStream) Close() error {
	s.mu.Lock()
	ended := s.closed || s.stop != nil
	s.closed = true
	s.doneLocked()
	s.mu.Unlock()
	if ended || s.c.err() != nil {
		return nil
	}
	s.out.send(func() {
		s.peer.c.welcome(s.peer)
		s.peer.mu.Lock()
		defer s.peer.mu.Unlock()
		s.peer.fin = true
		s.peer.cond.Broadcast()
	})
	return nil
}

func (s *muxStream) CancelWrite(code quic.StreamErrorCode) {
	taken := s.peer.finished()
	s.mu.Lock()
	ended := s.closed && taken || s.stop != nil
	if !ended {
		s.stop = &quic.StreamError{ErrorCode: code}
		s.doneLocked()
	}
	s.mu.Unlock()
	if ended || s.c.err() != nil {
		return
	}
	s.c.control.send(func() { // past what was written
		s.peer.c.welcome(s.peer)
		s.peer.gaveUp(&s.peer.reset, &quic.StreamError{ErrorCode: code, Remote: true})
	})
}

func (s *muxStream) CancelRead(code quic.StreamErrorCode) {
	s.mu.Lock()
	ended := s.reset != nil || s.fin && len(s.ready) == 0
	if !ended {
		s.reset = &quic.StreamError{ErrorCode: code}
		s.held, s.ready = s.held-len(s.ready), nil
		s.doneLocked()
		s.cond.Broadcast()
	}
	s.mu.Unlock()
	if ended || s.c.err() != nil {
		return
	}
	s.c.control.send(func() {
		s.peer.c.welcome(s.peer)
		s.peer.gaveUp(&s.peer.stop, &quic.StreamError{ErrorCode: code, Remote: true})
	})
}

// finished reports that all has come here. (The writer asks.)
func (s *muxStream) finished() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fin
}

// gaveUp takes what the far end gave up with, unless that direction has ended.
func (s *muxStream) gaveUp(direction *error, with error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if *direction == nil && !(direction == &s.reset && s.fin && len(s.ready) == 0) {
		*direction = with
	}
	s.doneLocked()
	s.cond.Broadcast()
}

func (s *muxStream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readBy = t
	if s.readT != nil {
		s.readT.Stop()
		s.readT = nil
	}
	if past(t) {
		s.cond.Broadcast()
	} else if !t.IsZero() {
		s.readT = afterFunc(time.Until(t), s.wake)
	}
	return nil
}
