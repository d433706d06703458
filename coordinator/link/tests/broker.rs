//! A link against a real Mosquitto, started by each test on a free port with its own configuration.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use skiff_link::{BrokerSettings, Link, LinkConfig, LinkEvent, Publication, Qos};
use skiff_protocol::codec::MAX_MESSAGE_BYTES;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest wait of a test. Nothing takes this long, not even with all cores busy; a test that waits longer has found a fault.
const PATIENCE: Duration = Duration::from_secs(300);

/// A Mosquitto for one test, in its own folder. It is killed when it is dropped.
struct Broker {
    folder: TempDir,
    port: u16,
    /// Socket that reserves the port. It is bound but does not listen, so nothing answers on the port unless the broker runs.
    _reserved: TcpSocket,
    process: Option<Child>,
}

impl Broker {
    fn start(settings: &str) -> Self {
        let mut broker = Self::prepare();
        broker.start_with(settings);
        broker
    }

    /// Makes a folder for files, and reserves a port.
    fn prepare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let reserved = TcpSocket::new_v4().unwrap();
        // Both sockets must say so if a second one is to bind the port.
        reserved.set_reuseaddr(true).unwrap();
        reserved.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let port = reserved.local_addr().unwrap().port();
        Self { folder, port, _reserved: reserved, process: None }
    }

    /// Starts the broker with one listener and with `settings`, in which `{folder}` stands for the folder.
    fn start_with(&mut self, settings: &str) {
        let port = self.port;
        let settings = settings.replace("{folder}", self.folder.path().to_str().unwrap());
        // Without this, a Mosquitto started by root becomes another user, who may not read the folder.
        let settings = format!("user root\nlistener {port} 127.0.0.1\n{settings}\n");
        std::fs::write(self.file("broker.conf"), settings).unwrap();
        self.restart();
    }

    fn restart(&mut self) {
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto"];
        let program = program.into_iter().find(|path| Path::new(path).exists()).unwrap_or("mosquitto");
        let process = Command::new(program)
            .arg("-c")
            .arg(self.file("broker.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto starts: install it (apt-get install mosquitto)");
        self.process = Some(process);
        let process = self.process.as_mut().unwrap();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(process.try_wait().unwrap().is_none(), "mosquitto refused its configuration");
            std::thread::yield_now();
        }
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    fn config(&self, client_id: &str, subscription: &str) -> LinkConfig {
        LinkConfig {
            broker: at(format!("mqtt://127.0.0.1:{}", self.port)),
            client_id: client_id.into(),
            subscriptions: vec![subscription.into()],
            ..LinkConfig::default()
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs a program in the broker's folder.
    fn run(&self, program: &str, arguments: &str) {
        let output = Command::new(program).args(arguments.split(' ')).current_dir(self.folder.path()).output();
        let output = output.unwrap_or_else(|error| panic!("{program} does not start ({error}): install it"));
        assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

fn at(url: String) -> BrokerSettings {
    BrokerSettings { url, ..BrokerSettings::default() }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> LinkEvent {
    timeout(PATIENCE, events.recv()).await.expect("something happens").expect("the link is open")
}

async fn next_down(events: &mut mpsc::Receiver<LinkEvent>) -> String {
    match next(events).await {
        LinkEvent::Down { reason } => reason,
        other @ (LinkEvent::Up | LinkEvent::Message { .. }) => panic!("{other:?}"),
    }
}

fn publication(topic: &str, payload: &[u8]) -> Publication {
    Publication { topic: topic.into(), payload: payload.into(), qos: Qos::AtLeastOnce, retain: false }
}

fn message(topic: &str, payload: &[u8]) -> LinkEvent {
    LinkEvent::Message { topic: topic.into(), payload: payload.into() }
}

#[tokio::test]
async fn a_published_message_comes_back_after_up() {
    let broker = Broker::start("allow_anonymous true");
    let (link, mut events) = Link::open(broker.config("a", "t/#")).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    let largest = vec![7; MAX_MESSAGE_BYTES];
    link.publish(publication("t/1", &largest)).await.unwrap();
    assert_eq!(next(&mut events).await, message("t/1", &largest));
    link.close().await;
}

#[tokio::test]
async fn what_was_queued_before_the_connection_arrives_and_close_sends_the_rest() {
    let broker = Broker::start("allow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0");
    let (_other, mut heard) = Link::open(broker.config("listener", "t/#")).unwrap();
    assert_eq!(next(&mut heard).await, LinkEvent::Up);
    let (link, mut events) = Link::open(broker.config("a", "nothing")).unwrap();
    for number in 0..40_u8 {
        link.publish(publication("t/1", &[number])).await.unwrap();
    }
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    for number in 40..200_u8 {
        link.publish(publication("t/1", &[number])).await.unwrap();
    }
    link.close().await;
    for number in 0..200_u8 {
        assert_eq!(next(&mut heard).await, message("t/1", &[number]));
    }
}

#[tokio::test]
async fn a_killed_broker_is_told_and_its_successor_found_with_subscriptions_made_again() {
    let mut broker = Broker::start("allow_anonymous true");
    let (link, mut events) = Link::open(broker.config("a", "t/#")).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    broker.kill();
    let reason = next_down(&mut events).await;
    assert!(reason.contains(&format!("mqtt://127.0.0.1:{}", broker.port)), "{reason}");
    broker.restart();
    while next(&mut events).await != LinkEvent::Up {}
    link.publish(publication("t/2", b"again")).await.unwrap();
    assert_eq!(next(&mut events).await, message("t/2", b"again"));
}

#[tokio::test]
async fn after_many_failed_attempts_a_broker_that_returns_is_found_before_the_next_rest_would_grow() {
    let mut broker = Broker::start("allow_anonymous true");
    let (_link, mut events) = Link::open(broker.config("a", "t/#")).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    broker.kill();
    assert!(!next_down(&mut events).await.is_empty());
    let away = tokio::net::TcpListener::bind(("127.0.0.1", broker.port)).await.unwrap();
    let mut longest = Duration::ZERO;
    for _ in 0..7 {
        let before = tokio::time::Instant::now();
        drop(timeout(PATIENCE, away.accept()).await.unwrap().unwrap());
        longest = longest.max(before.elapsed());
    }
    drop(away);
    broker.restart();
    while next(&mut events).await != LinkEvent::Up {}
    // Seven rests that keep doubling end at 16 s or more. Half of that time leaves room for a busy machine.
    assert!(longest < Duration::from_secs(8), "the longest rest of a short outage took {longest:?}");
}

#[tokio::test]
async fn what_is_published_while_the_broker_is_away_waits_for_it_within_bounds() {
    let mut broker = Broker::prepare();
    let (link, mut events) = Link::open(broker.config("a", "nothing")).unwrap();
    assert!(next_down(&mut events).await.contains("check that it runs"));
    for number in 0..skiff_link::QUEUE {
        let kept = Publication { retain: true, ..publication(&format!("t/{number}"), b"kept") };
        assert_eq!(link.try_publish(kept), Ok(true));
    }
    // Let a few more attempts fail. The queue must not change.
    let away = tokio::net::TcpListener::bind(("127.0.0.1", broker.port)).await.unwrap();
    for _ in 0..2 {
        drop(timeout(PATIENCE, away.accept()).await.unwrap().unwrap());
    }
    drop(away);
    assert_eq!(link.try_publish(publication("t/more", b"")), Ok(false));
    broker.start_with("allow_anonymous true");
    while next(&mut events).await != LinkEvent::Up {}
    let (_other, mut heard) = Link::open(broker.config("listener", "t/#")).unwrap();
    assert_eq!(next(&mut heard).await, LinkEvent::Up);
    for _ in 0..skiff_link::QUEUE {
        assert!(matches!(next(&mut heard).await, LinkEvent::Message { payload, .. } if payload == b"kept"));
    }
}

#[tokio::test]
async fn a_wrong_password_is_said_so_and_the_right_one_works() {
    let mut broker = Broker::prepare();
    broker.run("mosquitto_passwd", "-b -c passwords ann right");
    broker.start_with("allow_anonymous false\npassword_file {folder}/passwords");
    let config_with = |password: &str| LinkConfig {
        broker: BrokerSettings {
            user: Some("ann".into()),
            password: Some(password.into()),
            ..broker.config(password, "t/#").broker
        },
        ..broker.config(password, "t/#")
    };
    let (_link, mut events) = Link::open(config_with("wrong")).unwrap();
    let reason = next_down(&mut events).await;
    assert!(reason.contains(r#"refused user "ann": check user and password"#), "{reason}");
    assert!(!reason.contains("wrong"), "{reason}");
    let (_link, mut events) = Link::open(config_with("right")).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    let url = format!("mqtt://ann:right@127.0.0.1:{}", broker.port);
    let (_link, mut events) = Link::open(LinkConfig { broker: at(url), ..broker.config("by-url", "t/#") }).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
}

#[tokio::test]
async fn the_last_will_is_heard_of_a_link_that_vanishes_and_not_of_one_that_is_closed() {
    let broker = Broker::start("allow_anonymous true");
    let (_other, mut heard) = Link::open(broker.config("listener", "t/#")).unwrap();
    assert_eq!(next(&mut heard).await, LinkEvent::Up);
    let with_will = |client_id: &str| LinkConfig {
        will: Some(publication(&format!("t/{client_id}"), b"gone")),
        ..broker.config(client_id, "nothing")
    };
    let (closed, mut events) = Link::open(with_will("closed")).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    closed.publish(publication("t/closed", b"bye")).await.unwrap();
    closed.close().await;
    let (vanishes, mut events) = Link::open(with_will("vanishes")).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    drop(vanishes);
    assert_eq!(next(&mut heard).await, message("t/closed", b"bye"));
    assert_eq!(next(&mut heard).await, message("t/vanishes", b"gone"));
}

const TLS_SETTINGS: &str = "allow_anonymous false\nrequire_certificate true\nuse_identity_as_username true\n\
    cafile {folder}/ca.pem\ncertfile {folder}/broker.pem\nkeyfile {folder}/broker.key";

/// Makes a certificate authority, and certificates of the broker and of a client that it signed.
fn make_certificates(broker: &Broker) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    broker.run("openssl", &format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    broker.run("openssl", &format!("req -x509 {key} -keyout x.key -out stranger.pem -days 2 -subj /CN=stranger"));
    std::fs::write(broker.file("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    for name in ["broker", "client"] {
        broker.run("openssl", &format!("req {key} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
        broker.run("openssl", &format!("x509 -req -in {name}.csr -out {name}.pem {sign}"));
    }
}

#[tokio::test]
async fn tls_takes_the_authority_and_the_client_certificate_that_it_is_given() {
    let mut broker = Broker::prepare();
    make_certificates(&broker);
    broker.start_with(TLS_SETTINGS);
    let config_with = |client_id: &str, ca: &str| LinkConfig {
        broker: BrokerSettings { ca_file: Some(broker.file(ca)), ..at(format!("mqtts://127.0.0.1:{}", broker.port)) },
        ..broker.config(client_id, "t/#")
    };
    let (link, mut events) = Link::open(LinkConfig {
        broker: BrokerSettings {
            client_cert_file: Some(broker.file("client.pem")),
            client_key_file: Some(broker.file("client.key")),
            ..config_with("full", "ca.pem").broker
        },
        ..config_with("full", "ca.pem")
    })
    .unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    link.publish(publication("t/1", b"hidden")).await.unwrap();
    assert_eq!(next(&mut events).await, message("t/1", b"hidden"));

    let (_link, mut events) = Link::open(config_with("stranger", "stranger.pem")).unwrap();
    let reason = next_down(&mut events).await;
    assert!(reason.contains("stranger.pem signed the broker's certificate (UnknownIssuer)"), "{reason}");
    let (_link, mut events) = Link::open(config_with("anonymous", "ca.pem")).unwrap();
    let reason = next_down(&mut events).await;
    assert!(reason.contains("set client_cert_file and client_key_file"), "{reason}");

    let broken = Link::open(LinkConfig {
        broker: BrokerSettings {
            client_cert_file: Some(broker.file("client.pem")),
            client_key_file: Some(broker.file("broker.key")),
            ..config_with("mixed", "ca.pem").broker
        },
        ..config_with("mixed", "ca.pem")
    });
    assert!(broken.unwrap_err().to_string().contains("broker.key"));
}

/// Makes the broker's certificate with this command of `openssl`, and returns the reason why a link to that broker is down. An
/// empty text means that the link is up.
async fn said_of_certificate(signing: &str) -> String {
    let mut broker = Broker::prepare();
    make_certificates(&broker);
    std::fs::write(broker.file("other-name"), "subjectAltName=DNS:hub.lan").unwrap();
    std::fs::write(broker.file("authority"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=critical,CA:TRUE").unwrap();
    std::fs::write(broker.file("for-clients"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=clientAuth").unwrap();
    std::fs::write(broker.file("index.txt"), "").unwrap();
    let folder = "database = index.txt\nnew_certs_dir = .\nrand_serial = yes\ndefault_md = sha256\npolicy = names";
    let settings = format!("[ca]\ndefault_ca = folder\n[folder]\n{folder}\n[names]\ncommonName = supplied\n");
    std::fs::write(broker.file("ca.conf"), settings).unwrap();
    broker.run("openssl", &format!("{signing} -in broker.csr -out broker.pem"));
    broker.start_with("allow_anonymous true\ncertfile {folder}/broker.pem\nkeyfile {folder}/broker.key");
    let settings = at(format!("mqtts://127.0.0.1:{}", broker.port));
    let settings = BrokerSettings { ca_file: Some(broker.file("ca.pem")), ..settings };
    let config = LinkConfig { broker: settings, ..broker.config("a", "t/#") };
    let (_link, mut events) = Link::open(config).unwrap();
    match next(&mut events).await {
        LinkEvent::Down { reason } => reason,
        LinkEvent::Up | LinkEvent::Message { .. } => String::new(),
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_accepted_is_described_with_the_remedy() {
    let signed = "x509 -req -days 2 -CA ca.pem -CAkey ca.key -CAcreateserial";
    let dated = "ca -batch -notext -config ca.conf -cert ca.pem -keyfile ca.key -extfile names";
    for (signing, says) in [
        (format!("{signed} -extfile names"), ""),
        (signed.to_owned(), "of X.509 version 1"),
        (format!("{signed} -extfile authority"), "is an authority certificate (CA:TRUE)"),
        (format!("{signed} -extfile other-name"), "is for hub.lan, and the URL has 127.0.0.1"),
        (format!("{signed} -extfile for-clients"), "is not for servers"),
        (format!("{dated} -startdate 20200101000000Z -enddate 20210101000000Z"), "expired on 2021-01-01 00:00 UTC"),
        (format!("{dated} -startdate 20900101000000Z -enddate 20910101000000Z"), "valid from 2090-01-01 00:00 UTC on"),
        ("x509 -req -days 2 -signkey broker.key -extfile names".to_owned(), "UnknownIssuer"),
    ] {
        let said = said_of_certificate(&signing).await;
        assert!(said.contains(says) && said.is_empty() == says.is_empty(), "{signing}: {said}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_no_authority_is_taken_as_its_own() {
    let mut broker = Broker::prepare();
    make_certificates(&broker);
    broker.run("openssl", "x509 -req -in broker.csr -signkey broker.key -days 2 -extfile names -out broker.pem");
    broker.start_with("allow_anonymous true\ncertfile {folder}/broker.pem\nkeyfile {folder}/broker.key");
    let url = format!("mqtts://127.0.0.1:{}", broker.port);
    let settings = BrokerSettings { ca_file: Some(broker.file("broker.pem")), ..at(url) };
    let (_link, mut events) = Link::open(LinkConfig { broker: settings, ..broker.config("a", "t/#") }).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
}

#[tokio::test]
async fn an_authority_of_version_1_is_taken() {
    let mut broker = Broker::prepare();
    make_certificates(&broker);
    broker.run("openssl", "req -newkey rsa:2048 -nodes -keyout old.key -out old.csr -subj /CN=old");
    broker.run("openssl", "x509 -req -in old.csr -key old.key -days 2 -out old.pem");
    let sign = "-CA old.pem -CAkey old.key -CAcreateserial -days 2 -extfile names";
    broker.run("openssl", &format!("x509 -req -in broker.csr -out broker.pem {sign}"));
    broker.start_with("allow_anonymous true\ncertfile {folder}/broker.pem\nkeyfile {folder}/broker.key");
    let url = format!("mqtts://127.0.0.1:{}", broker.port);
    let settings = BrokerSettings { ca_file: Some(broker.file("old.pem")), ..at(url) };
    let (_link, mut events) = Link::open(LinkConfig { broker: settings, ..broker.config("a", "t/#") }).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
}

#[tokio::test]
async fn a_url_of_the_other_scheme_is_noticed() {
    let mut encrypted = Broker::prepare();
    make_certificates(&encrypted);
    encrypted.start_with("allow_anonymous true\ncertfile {folder}/broker.pem\nkeyfile {folder}/broker.key");
    let (_link, mut events) = Link::open(encrypted.config("a", "t/#")).unwrap();
    let reason = next_down(&mut events).await;
    assert!(reason.contains(&format!("speaks TLS on port {}: write mqtts://", encrypted.port)), "{reason}");

    let plain = Broker::start("allow_anonymous true");
    let settings =
        BrokerSettings { ca_file: Some(encrypted.file("ca.pem")), ..at(format!("mqtts://127.0.0.1:{}", plain.port)) };
    let (_link, mut events) = Link::open(LinkConfig { broker: settings, ..plain.config("a", "t/#") }).unwrap();
    let reason = next_down(&mut events).await;
    assert!(reason.contains(&format!("speaks MQTT without TLS on port {}:", plain.port)), "{reason}");
}

#[tokio::test]
async fn an_oversized_message_comes_cut_and_a_far_too_large_packet_costs_only_the_connection() {
    let broker = Broker::start("allow_anonymous true");
    let (_link, mut events) = Link::open(broker.config("a", "t/#")).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    std::fs::write(broker.file("large"), vec![7; MAX_MESSAGE_BYTES + 100]).unwrap();
    std::fs::write(broker.file("huge"), vec![7; 3 << 20]).unwrap();
    broker.run("mosquitto_pub", &format!("-p {} -t t/large -f large", broker.port));
    assert_eq!(next(&mut events).await, message("t/large", &[7; MAX_MESSAGE_BYTES + 1]));
    broker.run("mosquitto_pub", &format!("-p {} -t t/huge -f huge", broker.port));
    let reason = next_down(&mut events).await;
    assert!(reason.contains("size limit"), "{reason}");
    assert_eq!(next(&mut events).await, LinkEvent::Up);
}

#[tokio::test]
async fn a_reader_that_stands_still_loses_messages_but_not_the_connection() {
    let broker = Broker::start("allow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0");
    let (slow, mut events) = Link::open(broker.config("slow", "t/#")).unwrap();
    let (fast, mut echo) = Link::open(broker.config("fast", "t/last")).unwrap();
    assert_eq!(next(&mut events).await, LinkEvent::Up);
    assert_eq!(next(&mut echo).await, LinkEvent::Up);
    for _ in 0..4 * skiff_link::INBOX {
        fast.publish(publication("t/many", b"x")).await.unwrap();
    }
    // These are more messages than the queue holds. So the link must keep sending although nobody reads its events.
    for _ in 0..4 * skiff_link::QUEUE {
        timeout(PATIENCE, slow.publish(publication("elsewhere", b"y"))).await.expect("the link keeps sending").unwrap();
    }
    slow.publish(publication("t/last", b"z")).await.unwrap();
    assert_eq!(next(&mut echo).await, message("t/last", b"z"));
    let taken = std::iter::from_fn(|| events.try_recv().ok()).count();
    assert_eq!(taken, skiff_link::INBOX);
    fast.publish(publication("t/fresh", b"w")).await.unwrap();
    while next(&mut events).await != message("t/fresh", b"w") {}
}

#[tokio::test]
async fn garbage_in_place_of_a_broker_is_told_once_and_tried_again() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    let (_link, mut events) =
        Link::open(LinkConfig { broker: at(url), client_id: "a".into(), ..LinkConfig::default() }).unwrap();
    for _ in 0..3 {
        let (mut socket, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let _ = socket.read(&mut [0; 256]).await.unwrap();
        socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
    }
    assert!(next_down(&mut events).await.contains("mqtt://127.0.0.1"));
    assert!(events.try_recv().is_err());
}
