package transport

import (
	"bufio"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/nornicdb/replication"
)

const (
	protocolVersion = 1
	nonceBytes      = 32
	// maxUnprovenFrameBytes bounds frames of a peer that has proven nothing.
	maxUnprovenFrameBytes = 64 << 10
)

// Labels keep the four values that are derived from one transcript apart.
const (
	labelServerProof = "nornicdb cluster server proof"
	labelDialerProof = "nornicdb cluster dialer proof"
	labelServerKey   = "nornicdb cluster server to dialer key"
	labelDialerKey   = "nornicdb cluster dialer to server key"
)

// hello is this side's Hello for a stream.
func (t *Transport) hello(kind replication.StreamKind) *replication.HelloRequest {
	nonce := make([]byte, nonceBytes)
	_, _ = rand.Read(nonce) // crypto/rand.Read never fails
	h := &replication.HelloRequest{
		Version: protocolVersion, ClusterID: t.opts.ClusterID, NodeID: t.opts.NodeID, Stream: kind, Nonce: nonce,
		MaxFrameSize: t.opts.MaxFrameSize, Region: t.opts.Region,
	}
	if r := t.regionSettings(); r != nil {
		h.SettingsHash = r.settingsHash
	}
	if carriesRaft(kind) {
		h.History = t.currentHistory()
	}
	return h
}

func carriesRaft(kind replication.StreamKind) bool {
	return kind == replication.StreamRaft || kind == replication.StreamSnapshot
}

// transcript is every field of both Hellos, each with its length before it,
// and, over TLS, a value that only the two ends of this TLS session share.
func transcript(dialer, server *replication.HelloRequest, binding []byte) []byte {
	var b []byte
	for _, h := range []*replication.HelloRequest{dialer, server} {
		for _, field := range [][]byte{
			binary.BigEndian.AppendUint64(nil, uint64(h.Version)), []byte(h.ClusterID), []byte(h.NodeID),
			[]byte(h.Stream), h.Nonce, binary.BigEndian.AppendUint64(nil, uint64(h.MaxFrameSize)),
			[]byte(h.Region), []byte(h.SettingsHash),
		} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(field)))
			b = append(b, field...)
		}
	}
	if dialer.History != "" || server.History != "" { // of Raft and snapshot streams
		for _, history := range []string{dialer.History, server.History} {
			b = binary.BigEndian.AppendUint32(b, uint32(len(history)))
			b = append(b, history...)
		}
	}
	return append(b, binding...)
}

// binding ties a proof to the TLS session it is made in, so that nobody can
// relay it through a session of his own; nil without TLS, where the records'
// keys do that.
func binding(c net.Conn) ([]byte, error) {
	tc, ok := c.(*tls.Conn)
	if !ok {
		return nil, nil
	}
	state := tc.ConnectionState()
	value, err := state.ExportKeyingMaterial("EXPORTER-nornicdb-cluster", nil, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", replication.ErrUnauthenticated, err)
	}
	return value, nil
}

func derive(secret []byte, label string, transcript []byte) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(label))
	mac.Write(transcript)
	return mac.Sum(nil)
}

// session is what a handshake ends in.
type session struct {
	conn     net.Conn     // frames or raw bytes go through it
	raw      *trackedConn // the connection below
	r        *bufio.Reader
	peer     replication.Peer
	maxFrame int // the smaller of both sides'
	kind     replication.StreamKind
}

// begin wraps a connection whose handshake is done: in records where TLS is off.
func (t *Transport) begin(c net.Conn, r *bufio.Reader, mine, theirs *replication.HelloRequest, transcript []byte, dialer bool) *session {
	s := &session{conn: c, r: r, maxFrame: min(mine.MaxFrameSize, theirs.MaxFrameSize), kind: theirs.Stream,
		peer: replication.Peer{NodeID: theirs.NodeID, Addr: c.RemoteAddr().String(), Region: theirs.Region, Hello: true,
			Proven: len(t.opts.Secret) > 0 || t.certificateShown(c)}}
	if t.opts.TLS != nil {
		return s
	}
	var inKey, outKey []byte
	if len(t.opts.Secret) > 0 {
		inKey, outKey = derive(t.opts.Secret, labelDialerKey, transcript), derive(t.opts.Secret, labelServerKey, transcript)
		if dialer {
			inKey, outKey = outKey, inKey
		}
	}
	rc := newRecordConn(c, r, inKey, outKey, func() { t.rejectFrame("record", c.RemoteAddr(), errRecord) })
	rc.trusting = t.opts.skipsChecksums
	s.conn, s.r = rc, bufio.NewReaderSize(rc, readBufferBytes)
	return s
}

// checkHello says whether a peer's Hello is one this node may talk to.
func (t *Transport) checkHello(h *replication.HelloRequest) (reason string, err error) {
	switch {
	case h.Version != protocolVersion:
		return "version", fmt.Errorf("%w: protocol version %d, this node speaks %d", replication.ErrUnsupported, h.Version, protocolVersion)
	case len(h.Nonce) != nonceBytes:
		return "malformed", fmt.Errorf("%w: nonce of %d bytes", replication.ErrUnauthenticated, len(h.Nonce))
	case h.MaxFrameSize < maxUnprovenFrameBytes:
		return "malformed", fmt.Errorf("%w: MaxFrameSize %d is too small", replication.ErrUnsupported, h.MaxFrameSize)
	case h.NodeID == "" || len(h.NodeID) > 256:
		return "malformed", fmt.Errorf("%w: no node ID", replication.ErrUnauthenticated)
	}
	switch h.Stream {
	case replication.StreamRPC, replication.StreamRaft, replication.StreamSnapshot:
		if h.ClusterID != t.opts.ClusterID {
			return "cluster", fmt.Errorf("%w: cluster %q, this is %q", replication.ErrWrongPeer, h.ClusterID, t.opts.ClusterID)
		}
		if own := t.currentHistory(); carriesRaft(h.Stream) && own != "" && h.History != "" && h.History != own {
			return "history", fmt.Errorf("%w: %s has a log of history %q, this node's is %q", replication.ErrForeignHistory, h.NodeID, h.History, own)
		}
	case replication.StreamRegion:
		return t.checkRegion(h)
	default:
		return "stream", fmt.Errorf("%w: stream %q", replication.ErrUnsupported, h.Stream)
	}
	return "", nil
}

func (t *Transport) checkRegion(h *replication.HelloRequest) (reason string, err error) {
	r := t.regionSettings()
	switch {
	case r == nil:
		return "stream", fmt.Errorf("%w: this node has no regions", replication.ErrUnsupported)
	case h.Region == "" || h.Region == t.opts.Region:
		return "region", fmt.Errorf("%w: region %q, this is %q", replication.ErrWrongPeer, h.Region, t.opts.Region)
	case h.SettingsHash != r.settingsHash:
		return "settings", fmt.Errorf("%w: region %q has other settings", replication.ErrWrongPeer, h.Region)
	}
	if err := r.check(h.Region); err != nil {
		return "region", fmt.Errorf("%w: region %q: %w", replication.ErrWrongPeer, h.Region, err)
	}
	return "", nil
}

// dialHandshake runs the dialer's side; the deadline is set by the caller.
func (t *Transport) dialHandshake(c net.Conn, addr string, kind replication.StreamKind) (*session, error) {
	r := bufio.NewReaderSize(c, readBufferBytes)
	mine := t.hello(kind)
	theirs, err := t.exchangeHello(c, r, mine)
	if err != nil {
		return nil, err
	}
	// What the server says of itself must hold for the stream asked for.
	theirs.Stream = kind
	if _, err := t.checkHello(theirs); err != nil {
		return nil, err
	}
	bound, err := binding(c)
	if err != nil {
		return nil, err
	}
	script := transcript(mine, theirs, bound)
	if err := t.proveToServer(c, r, theirs.MAC, script); err != nil {
		return nil, err
	}
	if check := t.peerCheck(); check != nil {
		if err := check(addr, theirs.NodeID); err != nil {
			return nil, fmt.Errorf("%w: %s answered as %s: %w", replication.ErrWrongPeer, addr, theirs.NodeID, err)
		}
	}
	return t.begin(c, r, mine, theirs, script, true), nil
}

// exchangeHello sends a Hello, or a proof, and returns what is answered.
func (t *Transport) exchangeHello(c net.Conn, r *bufio.Reader, h *replication.HelloRequest) (*replication.HelloRequest, error) {
	if err := t.writeHello(c, replication.MsgHello, h); err != nil {
		return nil, err
	}
	frame, err := readFrame(r, maxUnprovenFrameBytes)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", alerted(err))
	}
	e, err := decodeEnvelope(frame)
	if err != nil {
		return nil, err
	}
	if e.Failure != nil {
		return nil, fmt.Errorf("handshake refused: %w", e.Failure.err())
	}
	if e.Type != int(replication.MsgHelloResponse) {
		return nil, fmt.Errorf("%w: message %d answers a Hello", errFrame, e.Type)
	}
	var answer replication.HelloResponse
	if err := json.Unmarshal(e.Payload, &answer); err != nil {
		return nil, fmt.Errorf("%w: Hello: %v", errFrame, err)
	}
	return &answer, nil
}

func (t *Transport) writeHello(c net.Conn, kind replication.MessageType, h *replication.HelloRequest) error {
	payload, err := json.Marshal(h)
	if err != nil {
		return err
	}
	frame, err := encodeFrame(&envelope{Type: int(kind), Node: t.opts.NodeID, Payload: payload}, maxUnprovenFrameBytes)
	if err != nil {
		return err
	}
	_, err = c.Write(frame)
	return err
}

// proveToServer checks the server's proof and sends ours.
func (t *Transport) proveToServer(c net.Conn, r *bufio.Reader, serverMAC, script []byte) error {
	secret := t.opts.Secret
	if len(secret) == 0 {
		if len(serverMAC) > 0 {
			return fmt.Errorf("%w: the peer has a cluster secret, this node has none", replication.ErrUnauthenticated)
		}
		return nil
	}
	if !hmac.Equal(serverMAC, derive(secret, labelServerProof, script)) {
		return fmt.Errorf("%w: the peer does not know the cluster secret", replication.ErrUnauthenticated)
	}
	_, err := t.exchangeHello(c, r, &replication.HelloRequest{MAC: derive(secret, labelDialerProof, script)})
	return err
}

// rejection is a handshake that failed, with the reason to count.
type rejection struct {
	reason  string
	err     error
	to      net.Conn  // who gets the error response
	request *envelope // that it answers; nil: none is sent
}

func (r *rejection) Error() string { return r.reason + ": " + r.err.Error() }
func (r *rejection) Unwrap() error { return r.err }

// acceptHandshake runs the server's side, after the first frame was read.
func (t *Transport) acceptHandshake(c net.Conn, r *bufio.Reader, first *envelope) (*session, error) {
	var theirs replication.HelloRequest
	if err := json.Unmarshal(first.Payload, &theirs); err != nil {
		return nil, &rejection{reason: "malformed", err: fmt.Errorf("%w: Hello: %v", replication.ErrUnauthenticated, err)}
	}
	if reason, err := t.checkHello(&theirs); err != nil {
		return nil, &rejection{reason: reason, err: err}
	}
	if !carriesMessages(theirs.Stream) && t.streamHandler(theirs.Stream) == nil {
		return nil, &rejection{reason: "stream", err: fmt.Errorf("%w: nothing serves stream %q here", replication.ErrUnsupported, theirs.Stream)}
	}
	mine := t.hello(theirs.Stream)
	bound, err := binding(c)
	if err != nil {
		return nil, &rejection{reason: "tls", err: err}
	}
	script := transcript(&theirs, mine, bound)
	if len(t.opts.Secret) > 0 {
		mine.MAC = derive(t.opts.Secret, labelServerProof, script)
	}
	if err := t.writeHello(c, replication.MsgHelloResponse, mine); err != nil {
		return nil, &rejection{reason: "io", err: err}
	}
	if len(t.opts.Secret) > 0 {
		if err := t.checkProof(r, script); err != nil {
			return nil, err
		}
		if err := t.writeHello(c, replication.MsgHelloResponse, &replication.HelloRequest{}); err != nil {
			return nil, &rejection{reason: "io", err: err}
		}
	}
	return t.begin(c, r, mine, &theirs, script, false), nil
}

// checkProof reads the third frame.
func (t *Transport) checkProof(r *bufio.Reader, script []byte) error {
	frame, err := readFrame(r, maxUnprovenFrameBytes)
	if err != nil {
		why := "no proof came"
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			why = "the dialer hung up before its proof: it has another secret, or waited no longer for a node that stood still"
		}
		return &rejection{reason: "no_proof", err: fmt.Errorf("%w: %s: %w", replication.ErrUnauthenticated, why, err)}
	}
	e, err := decodeEnvelope(frame)
	if err != nil {
		return &rejection{reason: "malformed", err: fmt.Errorf("%w: no proof came: %w", replication.ErrUnauthenticated, err)}
	}
	var proof replication.HelloRequest
	if e.Type != int(replication.MsgHello) || json.Unmarshal(e.Payload, &proof) != nil || len(proof.MAC) == 0 {
		return &rejection{reason: "no_proof", err: fmt.Errorf("%w: no proof of the cluster secret", replication.ErrUnauthenticated)}
	}
	if !hmac.Equal(proof.MAC, derive(t.opts.Secret, labelDialerProof, script)) {
		return &rejection{reason: "wrong_proof", err: fmt.Errorf("%w: wrong proof of the cluster secret", replication.ErrUnauthenticated)}
	}
	return nil
}

// rejectionReason is the label under which a failed handshake is counted.
func rejectionReason(err error) string {
	var r *rejection
	if errors.As(err, &r) {
		return r.reason
	}
	return "malformed"
}

func setDeadline(c net.Conn, d time.Duration) { _ = c.SetDeadline(time.Now().Add(d)) }
func clearDeadline(c net.Conn)                { _ = c.SetDeadline(time.Time{}) }
