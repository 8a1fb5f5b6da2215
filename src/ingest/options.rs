//! What is configured, checked and turned into what a connection needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};

use crate::config::{MqttConfig, MqttVersion, Secret};

/// Why the `[mqtt]` section cannot be used; the configuration has to be mended.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("mqtt.url: expected mqtt://host, mqtts://host or either with :port, found `{0}`")]
    Url(String),
    #[error("mqtt.url: expected no user name in `{0}`; use mqtt.username and mqtt.password_file")]
    UserInUrl(String),
    #[error("mqtt.client_id: expected a name, found nothing")]
    NoClientId,
    #[error("mqtt.{key}: only mqtts:// uses it, found `{url}`")]
    NotTls { key: &'static str, url: String },
    #[error("mqtt.{0}: mqtt.client_cert_file and mqtt.client_key_file go together")]
    HalfIdentity(&'static str),
    #[error("mqtt.{key}: no usable PEM in `{file}`")]
    Pem { key: &'static str, file: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("mqtt.{key}: no certificate in `{file}`")]
    NoCertificate { key: &'static str, file: PathBuf },
    #[error("mqtt.ca_file: this machine has no root certificates; name a file")]
    NoRoots,
    #[error("tls cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// Where to connect and how, checked.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionOptions {
    pub(crate) url: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Option<Arc<ClientConfig>>,
    pub(crate) version: MqttVersion,
    pub(crate) client_id: String,
    pub(crate) credentials: Option<(String, Secret)>,
}

impl ConnectionOptions {
    /// Checks the section and loads the files that it names.
    pub(crate) fn new(config: &MqttConfig) -> Result<Self, SetupError> {
        let (tls, host, port) = parse_url(&config.url)?;
        if config.client_id.is_empty() {
            return Err(SetupError::NoClientId);
        }
        let tls = if tls { Some(Arc::new(tls_config(config)?)) } else { None };
        if tls.is_none() {
            let files = [
                ("ca_file", &config.ca_file),
                ("client_cert_file", &config.client_cert_file),
                ("client_key_file", &config.client_key_file),
            ];
            if let Some((key, _)) = files.into_iter().find(|(_, file)| file.is_some()) {
                return Err(SetupError::NotTls { key, url: config.url.clone() });
            }
        }
        let credentials = config.username.clone().map(|username| {
            let password = config.password.clone().unwrap_or_else(|| Secret::new(""));
            (username, password)
        });
        Ok(Self {
            url: config.url.clone(),
            host,
            port,
            tls,
            version: config.version,
            client_id: config.client_id.clone(),
            credentials,
        })
    }
}

/// Returns whether TLS is wanted, the host and the port.
fn parse_url(url: &str) -> Result<(bool, String, u16), SetupError> {
    let wrong = || SetupError::Url(url.to_owned());
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let (tls, default_port) = match scheme {
        "mqtt" => (false, 1883),
        "mqtts" => (true, 8883),
        _ => return Err(wrong()),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        // What stands before the @ may be a password: the error must not repeat it.
        let host = rest.rsplit('@').next().unwrap_or_default();
        return Err(SetupError::UserInUrl(format!("{scheme}://…@{host}")));
    }
    // The colons of an IPv6 address stand within brackets.
    let after_address = rest.find(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match rest[after_address..].find(':') {
        Some(colon) => {
            let (host, port) = rest.split_at(after_address + colon);
            (host, port[1..].parse().map_err(|_| wrong())?)
        }
        None => (rest, default_port),
    };
    let name = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let known = ServerName::try_from(name).is_ok_and(|server_name| match server_name {
        // The client library joins host and port by a colon, and takes the host as it is for the name in a certificate.
        ServerName::IpAddress(address) => {
            (name != host) == matches!(address, rustls::pki_types::IpAddr::V6(_)) && (name == host || !tls)
        }
        _ => name == host,
    });
    if !known || port == 0 {
        return Err(wrong());
    }
    Ok((tls, host.to_owned(), port))
}

fn tls_config(config: &MqttConfig) -> Result<ClientConfig, SetupError> {
    let mut roots = RootCertStore::empty();
    match &config.ca_file {
        Some(file) => {
            for certificate in certificates("ca_file", file)? {
                roots.add(certificate)?;
            }
        }
        None => {
            // Some machines carry a certificate that cannot be used; the others still count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(SetupError::NoRoots);
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    match (&config.client_cert_file, &config.client_key_file) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate_file), Some(key_file)) => {
            let chain = certificates("client_cert_file", certificate_file)?;
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|source| SetupError::Pem {
                key: "client_key_file",
                file: key_file.clone(),
                source,
            })?;
            Ok(builder.with_client_auth_cert(chain, key)?)
        }
        (Some(_), None) => Err(SetupError::HalfIdentity("client_key_file")),
        (None, Some(_)) => Err(SetupError::HalfIdentity("client_cert_file")),
    }
}

fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let unusable = |source| SetupError::Pem { key, file: file.to_owned(), source };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(file).map_err(unusable)?.collect::<Result<_, _>>().map_err(unusable)?;
    if certificates.is_empty() {
        return Err(SetupError::NoCertificate { key, file: file.to_owned() });
    }
    Ok(certificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        for (url, expected) in [
            ("mqtt://broker.example", (false, "broker.example", 1883)),
            ("mqtt://10.0.0.7:2883/", (false, "10.0.0.7", 2883)),
            ("mqtts://broker.example", (true, "broker.example", 8883)),
            ("mqtt://[::1]:1884", (false, "[::1]", 1884)),
        ] {
            let (tls, host, port) = parse_url(url).unwrap();
            assert_eq!((tls, host.as_str(), port), expected, "{url}");
        }
        for wrong in [
            "broker.example",
            "tcp://broker.example",
            "mqtt://",
            "mqtt://:1883",
            "mqtt://broker.example:port",
            "mqtt://broker.example:0",
            "mqtt://broker.example/path",
            "mqtt://::1",
            "mqtt://[10.0.0.7]",
            "mqtts://[::1]",
        ] {
            assert!(matches!(parse_url(wrong), Err(SetupError::Url(_))), "{wrong}");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let error = parse_url("mqtt://me:geheim@broker.example").unwrap_err().to_string();
        assert!(error.contains("broker.example") && !error.contains("geheim"), "{error}");
    }

    #[test]
    fn files_that_do_not_fit_are_named() {
        let plain = MqttConfig {
            url: "mqtt://localhost".into(),
            version: MqttVersion::V5,
            client_id: "frostline".into(),
            username: None,
            password: None,
            ca_file: None,
            client_cert_file: None,
            client_key_file: None,
        };
        assert!(ConnectionOptions::new(&plain).is_ok());
        let nameless = MqttConfig { client_id: String::new(), ..plain.clone() };
        assert!(matches!(ConnectionOptions::new(&nameless), Err(SetupError::NoClientId)));
        let needless = MqttConfig { ca_file: Some("ca.pem".into()), ..plain.clone() };
        assert!(matches!(ConnectionOptions::new(&needless), Err(SetupError::NotTls { key: "ca_file", .. })));
        let missing =
            MqttConfig { url: "mqtts://localhost".into(), ca_file: Some("no/such/ca.pem".into()), ..plain.clone() };
        let error = ConnectionOptions::new(&missing).unwrap_err().to_string();
        assert!(error.contains("ca_file") && error.contains("no/such/ca.pem"), "{error}");

        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (ca_file, empty_file) = (dir.path().join("ca.pem"), dir.path().join("empty.pem"));
        std::fs::write(&ca_file, signed.cert.pem()).unwrap();
        std::fs::write(&empty_file, "").unwrap();
        let empty = MqttConfig { ca_file: Some(empty_file), ..missing.clone() };
        assert!(matches!(ConnectionOptions::new(&empty), Err(SetupError::NoCertificate { key: "ca_file", .. })));
        let half =
            MqttConfig { ca_file: Some(ca_file.clone()), client_cert_file: Some(ca_file.clone()), ..missing.clone() };
        assert!(matches!(ConnectionOptions::new(&half), Err(SetupError::HalfIdentity("client_key_file"))));
        let whole = MqttConfig { ca_file: Some(ca_file), ..missing };
        assert!(ConnectionOptions::new(&whole).unwrap().tls.is_some());
    }
}
