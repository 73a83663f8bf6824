package replication

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Metadata rows of the replication layer all begin with this prefix.
const metaPrefix = "replication/"

var (
	metaHistory = []byte(metaPrefix + "history")
	metaBase    = []byte(metaPrefix + "base")
	metaLimit   = []byte(metaPrefix + "request-limit")
)

// defaultRequestLimit is how many request outcomes a new history remembers.
const defaultRequestLimit = 1 << 16

// NewHistory returns a new random history ID.
func NewHistory() string { return rand.Text() }

// SucceedingHistory is a new history that continues an old one whose log was cut
// off from its cluster: by a recovery after a quorum was lost for good.
func SucceedingHistory(old string) string { return old + "+" + rand.Text() }

// Supersedes says whether a history was made of an older one by recovery.
func Supersedes(history, old string) bool {
	return old != "" && strings.HasPrefix(history, old+"+")
}

// settings is the Data of CmdSettings: a history that is founded through the
// log, where a snapshot cannot found it, or what a member is wanted to be.
type settings struct {
	History string      `json:",omitempty"`
	Member  *MemberWish `json:",omitempty"`
}

// NewFoundingCommand makes the command by which the first leader founds a
// history whose storage has no snapshots. It has no effect where a history is
// founded already.
func NewFoundingCommand(history string) (*Command, error) {
	data, err := json.Marshal(settings{History: history})
	if err != nil {
		return nil, err
	}
	return &Command{Type: CmdSettings, Data: data, Timestamp: time.Now()}, nil
}

// decodeSettings reads settings that say exactly one thing.
func decodeSettings(data []byte) (settings, error) {
	var s settings
	if err := json.Unmarshal(data, &s); err != nil || (s.History == "") == (s.Member == nil) {
		return settings{}, fmt.Errorf("%w: settings", ErrInvalidCommand)
	}
	if s.Member != nil {
		return s, s.Member.validate()
	}
	return s, nil
}

func readIdentity(m Meta) (Identity, error) {
	history, err := m.GetMeta(metaHistory)
	if err != nil || history == nil {
		return Identity{}, err
	}
	base, err := getMetaUint(m, metaBase)
	return Identity{History: string(history), Base: base}, err
}

func writeIdentity(tx Tx, id Identity) error {
	if id == (Identity{}) {
		if err := tx.SetMeta(metaBase, nil); err != nil {
			return err
		}
		return tx.SetMeta(metaHistory, nil)
	}
	if err := tx.SetMeta(metaBase, binary.AppendUvarint(nil, id.Base)); err != nil {
		return err
	}
	return tx.SetMeta(metaHistory, []byte(id.History))
}

func getMetaUint(m Meta, key []byte) (uint64, error) {
	v, err := m.GetMeta(key)
	if err != nil || v == nil {
		return 0, err
	}
	u, n := binary.Uvarint(v)
	if n <= 0 || n != len(v) {
		return 0, fmt.Errorf("metadata row %s is damaged", key)
	}
	return u, nil
}
