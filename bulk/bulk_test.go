package bulk

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

// pair is both ends of one direction, a connection between them that may break at
// any frame, and an application at each end. The reading one may die and be begun
// anew at what it acknowledged, as a handler is by a move.
type pair struct {
	t       *testing.T
	s       Sender
	r       Receiver
	wire    []Chunk  // data on the connection
	acks    []uint64 // acknowledgements on it
	written uint64
	done    uint64 // acknowledged by the reading application, all checked
	read    uint64 // read by the present run of it
}

func at(offset uint64) byte { return byte(offset*7 + offset>>8 + offset>>16) }

func run(from uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = at(from + uint64(i))
	}
	return b
}

func (p *pair) write(n int) {
	if p.s.Finished() {
		return
	}
	room := p.s.Room()
	took := p.s.Write(run(p.written, n))
	if took != min(n, room) {
		p.t.Fatalf("%d of %d bytes taken with room for %d", took, n, room)
	}
	p.written += uint64(took)
}

func (p *pair) send() {
	if c, ok := p.s.Next(); ok {
		c.Data = bytes.Clone(c.Data)
		p.wire = append(p.wire, c)
	}
}

func (p *pair) deliver() {
	if len(p.wire) > 0 {
		if err := p.r.Take(p.wire[0]); err != nil {
			p.t.Fatal(err)
		}
		p.wire = p.wire[1:]
	}
	if len(p.acks) > 0 {
		if err := p.s.Ack(p.acks[0]); err != nil {
			p.t.Fatal(err)
		}
		p.acks = p.acks[1:]
	}
	if p.r.Next()-p.r.Acked() > WindowBytes {
		p.t.Fatal("more than a window is held")
	}
}

// take reads, and checks that what is read is what comes next.
func (p *pair) take(n int) {
	if p.r.ReadTo() == p.r.Acked()+WindowBytes {
		p.ack(WindowBytes)
	}
	buf := make([]byte, min(uint64(n), p.r.Next()-p.r.ReadTo()+1))
	k, err := p.r.Read(buf)
	if err != nil && err != io.EOF {
		p.t.Fatal(err)
	}
	if err == io.EOF && (p.read != p.written || !p.s.Finished()) {
		p.t.Fatalf("the end came at %d of %d", p.read, p.written)
	}
	if !bytes.Equal(buf[:k], run(p.read, k)) {
		p.t.Fatalf("wrong bytes at %d", p.read)
	}
	p.read += uint64(k)
}

func (p *pair) ack(n int) {
	to := min(p.done+uint64(n), p.read)
	if err := p.r.Ack(to); err != nil {
		p.t.Fatal(err)
	}
	p.done = to
	if to, due := p.r.Due(); due {
		p.acks = append(p.acks, to)
	}
}

// reconnect loses what is on the connection and begins another.
func (p *pair) reconnect() {
	p.wire, p.acks = nil, nil
	if err := errors.Join(p.s.Ack(p.r.Tell()), p.s.Rewind(p.r.Next())); err != nil {
		p.t.Fatal(err)
	}
}

// step does what op says. The last two are a run of the reading application that
// dies, and a sender that is moved with what it keeps.
func (p *pair) step(op byte, n int) {
	switch op % 8 {
	case 0:
		p.write(n)
	case 1:
		p.send()
	case 2:
		p.deliver()
	case 3:
		p.take(n)
	case 4:
		p.ack(n)
	case 5:
		p.reconnect()
	case 6:
		p.r = NewReceiver(p.r.Acked())
		p.read = p.done
		p.reconnect()
	case 7:
		p.s = NewSender(p.s.Acked(), bytes.Clone(p.s.Kept()), p.s.Finished())
		p.reconnect()
	}
}

// finish brings everything across and checks that it is all there.
func (p *pair) finish() {
	for p.r.Next() < p.written {
		p.send()
		p.deliver()
		p.take(WindowBytes)
		p.ack(WindowBytes)
	}
	p.s.Finish()
	p.send() // the end alone, and it is lost
	p.reconnect()
	for range 10_000 {
		p.send()
		p.deliver()
		p.take(WindowBytes)
		p.ack(WindowBytes)
		if p.read == p.written && p.r.Finished() {
			break
		}
	}
	if n, err := p.r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		p.t.Fatalf("after the end: %d, %v", n, err)
	}
	if p.read != p.written || p.s.Room() != 0 {
		p.t.Fatalf("%d of %d bytes arrived", p.read, p.written)
	}
}

// TestNothingIsLostOrDoubled under random breaks and restarts.
func TestNothingIsLostOrDoubled(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p := &pair{t: t}
		for range 400 {
			op := byte(rng.IntN(5)) // mostly progress
			if rng.IntN(12) == 0 {
				op = byte(5 + rng.IntN(3))
			}
			p.step(op, 1+rng.IntN(100_000))
		}
		p.finish()
		if t.Failed() {
			t.Fatal("seed", seed)
		}
	}
}

func FuzzPair(f *testing.F) {
	f.Add([]byte{0, 200, 1, 0, 2, 0, 3, 90, 4, 30, 6, 0, 1, 0, 2, 0, 5, 0, 7, 0, 1, 0, 2, 0, 3, 255})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := &pair{t: t}
		for i := 0; i+1 < len(ops) && i < 200; i += 2 {
			p.step(ops[i], int(ops[i+1])*200+1)
		}
		p.finish()
	})
}

func TestOtherSideIsNotBelieved(t *testing.T) {
	var s Sender
	s.Write([]byte("0123456789"))
	for name, err := range map[string]error{
		"acknowledges what was never sent": s.Ack(11),
		"wants what was never sent":        s.Rewind(11),
		"wants what it said it had":        errors.Join(s.Ack(5), s.Rewind(4)),
	} {
		if wire.CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("a receiver that %s: %v", name, err)
		}
	}
	for name, c := range map[string]Chunk{
		"leaves bytes out":  {Offset: 1, Data: []byte("x")},
		"passes the window": {Offset: 0, Data: make([]byte, WindowBytes+1)},
		"wraps around":      {Offset: ^uint64(0), Data: []byte("xy")},
	} {
		var r Receiver
		if err := r.Take(c); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("a sender that %s: %v", name, err)
		}
	}
	var r Receiver
	for _, c := range []Chunk{{Data: []byte("e")}, {Data: []byte("en")}, {Offset: 1, Data: []byte("n")}} { // again and again
		if err := r.Take(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Take(Chunk{Data: []byte("end"), Fin: true}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Chunk{{Offset: 3, Data: []byte("x")}, {Offset: 0, Data: []byte("e"), Fin: true}} {
		if err := r.Take(c); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
			t.Errorf("behind the end: %v", err)
		}
	}
	if r.Next() != 3 || string(r.held) != "end" {
		t.Errorf("%q has come", r.held)
	}
	if err := r.Ack(1); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("acknowledged unread: %v", err)
	}
}

// TestReaderThatNeverAcknowledgesIsTold instead of waiting for ever.
func TestReaderThatNeverAcknowledgesIsTold(t *testing.T) {
	p := &pair{t: t}
	p.write(2 * WindowBytes)
	for range WindowBytes / ChunkBytesMax {
		p.send()
		p.deliver()
	}
	for range 2 {
		_, err := p.r.Read(make([]byte, WindowBytes))
		if p.r.ReadTo() < WindowBytes {
			t.Fatal("the window did not come at once")
		}
		if !p.r.Readable() {
			t.Fatal("Read would not say so")
		}
		if err != nil {
			if wire.CodeOf(err) != wire.Code_BAD_REQUEST {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no error")
}

func TestMessages(t *testing.T) {
	var b []byte
	for _, m := range []string{"", "one", string(make([]byte, MessageBytesMax))} {
		var err error
		if b, err = AppendMessage(b, []byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := AppendMessage(nil, make([]byte, MessageBytesMax+1)); wire.CodeOf(err) != wire.Code_VALUE_TOO_LARGE {
		t.Error(err)
	}
	r := bytes.NewReader(b)
	for _, want := range []int{0, 3, MessageBytesMax} {
		if m, err := ReadMessage(r); err != nil || len(m) != want {
			t.Fatalf("%d bytes, %v", len(m), err)
		}
	}
	if _, err := ReadMessage(r); err != io.EOF {
		t.Error(err)
	}
	if _, err := ReadMessage(bytes.NewReader(b[4:9])); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	if _, err := ReadMessage(bytes.NewReader([]byte{255, 255, 255, 255})); wire.CodeOf(err) != wire.Code_VALUE_TOO_LARGE {
		t.Error(err)
	}
}

// FuzzReadMessage: whatever comes is a message, or a refusal.
func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 'o', 'k', 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var again []byte
		for {
			m, err := ReadMessage(r)
			if err != nil {
				break
			}
			if again, err = AppendMessage(again, m); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatal("read what was not there")
		}
	})
}
