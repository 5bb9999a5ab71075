package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"

	"github.com/baton-cluster/baton"
)

// Byte streams carry noise that both ends can make, so what arrives is compared
// byte by byte with what was sent: at least its beginning, where a stream ends
// before its time.

const (
	streamMax   = 512 << 10
	noiseBlock  = 4 << 10
	streamHands = 2
)

// streamEnds are what may end a stream before its time: a crash of the owner, the
// client's own deadline, or the session's other troubles. A resumable stream is
// never ended by a move.
var streamEnds = []string{"stream_lost", "deadline_exceeded", "unavailable", "displaced", "not_attached", "shutting_down"}

// noise is the i-th block of a stream.
func noise(seed, i uint64) []byte {
	var key [32]byte
	for k := range 8 {
		key[k], key[8+k] = byte(seed>>(8*k)), byte(i>>(8*k))
	}
	b := make([]byte, noiseBlock)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func makeNoise(seed uint64, size int) []byte {
	var out []byte
	for i := uint64(0); len(out) < size; i++ {
		out = append(out, noise(seed, i)...)
	}
	return out[:size]
}

// flow opens one stream, sends and reads, and judges.
func (n *lane) flow(s *baton.Session, rng *rand.Rand) {
	method := []string{"sum", "mirror", "mirror", "fragile"}[rng.IntN(4)]
	sent := makeNoise(rng.Uint64(), 1+rng.IntN(streamMax))
	ctx, cancel := context.WithTimeout(context.Background(), opLimit)
	defer cancel()
	got, err := exchange(ctx, s, method, sent)
	n.load.streamed(len(sent), err)
	if bad := judgeStream(method, sent, got, err); bad != "" {
		n.load.complain("stream", n.id, bad)
	}
}

// exchange sends all while it reads to the end.
func exchange(ctx context.Context, s *baton.Session, method string, sent []byte) (got []byte, err error) {
	st, err := s.OpenStream(ctx, method, nil)
	if err != nil {
		return nil, err
	}
	defer st.Close()
	wrote := make(chan error, 1)
	go func() {
		_, err := st.Write(sent)
		if err == nil {
			err = st.CloseWrite()
		}
		wrote <- err
	}()
	got, err = io.ReadAll(st)
	if err != nil {
		st.Close() // or the writer might wait for room
	}
	if werr := <-wrote; err == nil {
		err = werr
	}
	return got, err
}

// judgeStream says what is wrong with what came of a stream.
func judgeStream(method string, sent, got []byte, err error) string {
	want := sent
	if method == "sum" {
		want = fmt.Appendf(nil, "%x", sha256.Sum256(sent))
	}
	code := baton.CodeOf(err).Label()
	switch {
	case err == nil && !bytes.Equal(got, want):
		return fmt.Sprintf("%s of %d bytes ended well, with %d bytes that are not those", method, len(sent), len(got))
	case !bytes.HasPrefix(want, got):
		return fmt.Sprintf("%s of %d bytes: of the %d that came back some are wrong, before %v", method, len(sent), len(got), err)
	case err == nil, slices.Contains(streamEnds, code), errors.Is(err, context.DeadlineExceeded):
		return ""
	case method == "fragile" && code == "stream_moved":
		return ""
	}
	return fmt.Sprintf("%s of %d bytes ended with %v", method, len(sent), err)
}

// streamed counts.
func (l *load) streamed(size int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.tally.StreamsCut++
		return
	}
	l.tally.Streams++
	l.tally.StreamBytes += int64(size)
}
