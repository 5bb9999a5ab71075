package sim

import (
	"context"
	"io"
	"math/rand/v2"
	"time"

	"github.com/baton-cluster/baton"
)

// mirrored is what a byte stream carries at an offset: whoever reads knows what
// must stand there, so a byte that is lost, read twice or out of place shows.
func mirrored(offset uint64) byte { return byte(offset * 0x9e3779b97f4a7c15 >> 56) }

// streamPart is written at a time.
const streamPart = 3000

// mirror writes back what it reads, and checks it.
func (w *world) mirror(st *baton.ServerStream) error {
	buf := make([]byte, streamPart)
	for {
		n, err := st.Read(buf)
		before := st.ReadOffset() - uint64(n)
		for i, b := range buf[:n] {
			if b != mirrored(before+uint64(i)) {
				w.violation("%s: the handler of a stream read %#x at offset %d", st.Session(), b, before+uint64(i))
				break
			}
		}
		taken, werr := st.Write(buf[:n])
		if aerr := st.Ack(before+uint64(taken), nil); aerr != nil {
			return aerr
		}
		switch {
		case werr != nil:
			return werr
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// stream keeps a byte stream going to the session, a new one whenever one ends
// as documented: when its owner crashes.
func (c *client) stream(s *baton.Session, l *ledger) {
	c.run(func(rng *rand.Rand) {
		for c.pause(rng, 5*time.Second) {
			st, err := s.OpenStream(c.ctx, "mirror", nil)
			if err != nil {
				continue
			}
			err = c.mirrorOnce(rng, st, l)
			_ = st.Close()
			c.w.mu.Lock()
			c.w.faults["stream-"+baton.CodeOf(err).String()]++
			c.w.mu.Unlock()
		}
	})
}

// mirrorOnce writes and reads until the stream ends.
func (c *client) mirrorOnce(rng *rand.Rand, st *baton.Stream, l *ledger) error {
	read := make(chan error, 1)
	ctx, cancel := context.WithCancel(c.ctx)
	go func() {
		defer cancel()
		buf := make([]byte, streamPart)
		for at := uint64(0); ; {
			n, err := st.Read(buf)
			for _, b := range buf[:n] {
				if b != mirrored(at) {
					c.w.violation("%s: %s read %#x at offset %d of a stream", l.id, c.name, b, at)
					read <- err
					return
				}
				at++
			}
			if err != nil {
				read <- err
				return
			}
		}
	}()
	for at := uint64(0); c.pause(rng, 2*time.Second) && ctx.Err() == nil; {
		part := make([]byte, rng.IntN(streamPart))
		for i := range part {
			part[i] = mirrored(at)
			at++
		}
		if _, err := st.Write(part); err != nil {
			break
		}
	}
	_ = st.Close()
	return <-read
}
